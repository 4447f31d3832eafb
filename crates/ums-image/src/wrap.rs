//! `ums image wrap`: an image becomes one whose container can be moved by whoever has no more than its container
//! (`ums_core::wrap` says what is in it and what of its configuration changes).
//!
//! The same image and the same programs make the same digest: nothing of it tells when or where it was made.

mod layer;
#[cfg(test)]
mod test;

use std::path::PathBuf;

use serde_json::{Value, json};
use ums_core::specification::Transport;
use ums_core::wrap::{self, Exposed, Level, Wrap};

use crate::copy::{self, Changed};
use crate::digest::Digest;
use crate::document::{Run, parse};
use crate::error::Error;
use crate::image::Image;
use crate::reference::Reference;
use crate::registry::Access;

/// What is put into a wrapped image.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `ums-agent`.
    pub agent: PathBuf,
    /// `ums-frontman`.
    pub frontman: PathBuf,
    /// The checkpoint/restore bundle.
    pub bundle: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the original's, where it has one.
    pub original: Option<Digest>,
    /// Programs that need a C library of the image's own.
    pub dynamic: Vec<PathBuf>,
}

/// Annotations that name what an image was made from (`annotations.md`).
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
const BASE_NAME: &str = "org.opencontainers.image.base.name";

/// Wraps an image for the container level; `named` is what it was called.
///
/// # Errors
/// When it is wrapped already, or something can't be read or written.
pub fn wrap(
    image: &Image,
    named: &Reference,
    programs: &Programs,
    to: &Reference,
    access: &Access,
) -> Result<Wrapped, Error> {
    let run = &image.config.config;
    refuse_twice(run)?;
    let memory = remembered(run, named);
    let json = serde_json::to_vec_pretty(&memory).expect("what is remembered has a form in JSON");
    let dynamic = layer::dynamic(programs)?;
    let layer = layer::make(&json, programs)?;
    let config = configured(&image.config_bytes, &layer.diff_id.0)?;
    let mut annotations = image.annotations.clone();
    if let Some(digest) = &image.manifest_digest {
        annotations.insert(BASE_DIGEST.to_owned(), digest.to_string());
    }
    if let Reference::Registry(repository, which) = named {
        annotations.insert(BASE_NAME.to_owned(), format!("{repository}{which}"));
    }
    let mut changed = Changed {
        image,
        layer: &layer,
        config,
        annotations,
    };
    Ok(Wrapped {
        digest: copy::write(&mut changed, to, access)?,
        original: image.manifest_digest.clone(),
        dynamic,
    })
}

fn refuse_twice(run: &Run) -> Result<(), Error> {
    let ours = run
        .entrypoint
        .first()
        .is_some_and(|it| it == wrap::ENTRYPOINT[0]);
    if ours || run.volumes.contains_key(wrap::STATE) {
        return Err(Error::Unsupported(
            "the image is wrapped already, or made from one that is: wrap the image that it was made from".to_owned(),
        ));
    }
    Ok(())
}

fn remembered(run: &Run, named: &Reference) -> Wrap {
    Wrap {
        version: wrap::VERSION,
        level: Level::Container,
        image: named.to_string(),
        entrypoint: run.entrypoint.clone(),
        cmd: run.cmd.clone(),
        user: run.user.clone(),
        env: run.env.clone(),
        cwd: run.working_dir.clone(),
        stop_signal: run.stop_signal.clone(),
        ports: run
            .exposed_ports
            .keys()
            .filter_map(|port| exposed(port))
            .collect(),
        volumes: run.volumes.keys().cloned().collect(),
    }
}

/// `PORT[/PROTOCOL]`; other protocols than these are led nowhere.
fn exposed(text: &str) -> Option<Exposed> {
    let (port, transport) = text.split_once('/').unwrap_or((text, "tcp"));
    Some(Exposed {
        transport: Transport::from_name(transport)?,
        port: port.parse().ok()?,
    })
}

/// The configuration with what changes; all else stays as it was, also what is unknown here.
fn configured(bytes: &[u8], diff_id: &Digest) -> Result<Vec<u8>, Error> {
    let what = "the image's configuration";
    let mut config: Value = parse(what, bytes)?;
    let malformed = || Error::malformed(what, "it has no `config` or `rootfs` of an image");
    let top = config.as_object_mut().ok_or_else(malformed)?;
    let run = top.entry("config").or_insert(Value::Null);
    if run.is_null() {
        *run = json!({});
    }
    let run = run.as_object_mut().ok_or_else(malformed)?;
    run.insert("Entrypoint".to_owned(), json!(wrap::ENTRYPOINT));
    run.insert("User".to_owned(), json!(""));
    let volumes = run.entry("Volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!({});
    }
    let volumes = volumes.as_object_mut().ok_or_else(malformed)?;
    volumes.insert(wrap::STATE.to_owned(), json!({}));
    let layers = top.get_mut("rootfs").and_then(|it| it.get_mut("diff_ids"));
    let layers = layers.and_then(Value::as_array_mut).ok_or_else(malformed)?;
    layers.push(json!(diff_id));
    let only = layers.len() == 1;
    let history = top.get_mut("history").and_then(Value::as_array_mut);
    // One that tells of no layer below would not fit any more.
    if let Some(history) = history.filter(|history| only || !history.is_empty()) {
        history.push(json!({
            "created_by": "ums image wrap --level container",
            "comment": concat!("UMS ", env!("CARGO_PKG_VERSION")),
        }));
    }
    Ok(serde_json::to_vec(&config).expect("a configuration has a form in JSON"))
}
