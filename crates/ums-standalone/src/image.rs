//! Images that services are started from: read and unpacked into the image store here, on the node, and what their
//! configuration says put into what was asked for.

mod merge;

use std::path::Path;

use ums_api::agent::{ImageSource, RunRequest, Unpacking};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::specification::ImageId;
use ums_image::document::Run;
use ums_image::limits::Limits;
use ums_image::registry::{Access, Login};
use ums_image::{Image, Reference};
use ums_node::problem;

use crate::images::ImageError;
use crate::state::Standalone;

pub(crate) use merge::{creation, notes, settle};

/// What a service is started from.
pub(crate) struct Base {
    /// Its root filesystem in the image store.
    pub(crate) id: ImageId,
    /// What its configuration says; of a bare root filesystem nothing.
    pub(crate) run: Run,
    /// Its reference, and the digest of its configuration; none of a bare root filesystem.
    pub(crate) named: Option<(String, String)>,
}

/// Has what a service is started from in the image store. Blocks.
pub(crate) fn base(host: &Standalone, request: &RunRequest) -> Result<Base, Problem> {
    match (&request.image, request.rootfs.is_empty()) {
        (None, false) => import(host, Path::new(&request.rootfs)),
        (Some(source), true) => fetch(host, request, source),
        (None, true) | (Some(_), false) => {
            let detail = "name an image, or a root filesystem (`--rootfs`)";
            Err(Problem::refused(
                400,
                ProblemKind::Image,
                "a service is started from one thing",
                detail,
            ))
        }
    }
}

/// Copies a root filesystem into the image store, unless it is there.
fn import(host: &Standalone, rootfs: &Path) -> Result<Base, Problem> {
    let id = host.images.import(rootfs).map_err(|error| {
        let title = "the root filesystem can't be imported";
        Problem::refused(400, ProblemKind::Rootfs, title, problem::chain(&error))
    })?;
    Ok(Base {
        id,
        run: Run::default(),
        named: None,
    })
}

fn fetch(host: &Standalone, request: &RunRequest, source: &ImageSource) -> Result<Base, Problem> {
    let reference: Reference = source.reference.parse().map_err(|error| refused(&error))?;
    if let Reference::Rootfs(dir) = &reference {
        return import(host, dir);
    }
    let login = source.login.as_ref().map(|login| Login {
        username: login.username.clone(),
        password: login.password.clone(),
    });
    let access = Access {
        plain_http: source.plain_http,
        login,
    };
    let limits = Limits::default();
    let image = Image::open(&reference, &access, &limits).map_err(|error| refused(&error))?;
    let id = unpacked(host, request, &image, limits)?;
    Ok(Base {
        id,
        named: Some((name(&reference), image.config_digest.hex().to_owned())),
        run: image.config.config,
    })
}

/// What an engine calls it.
fn name(reference: &Reference) -> String {
    let text = reference.to_string();
    text.strip_prefix("docker://").unwrap_or(&text).to_owned()
}

/// Unpacks the layers, unless these have been.
fn unpacked(
    host: &Standalone,
    request: &RunRequest,
    image: &Image,
    limits: Limits,
) -> Result<ImageId, Problem> {
    let key = format!("layers {}", image.chain_id());
    if let Some(id) = host.images.unpacked(&key).map_err(|error| failed(&error))? {
        return Ok(id);
    }
    let unpacking = host.images.unpacking().map_err(|error| failed(&error))?;
    let bytes_total = image.layer_bytes();
    let _told = Told(host, request);
    let tell = &mut |bytes| {
        let far = Unpacking { bytes, bytes_total };
        host.set_unpacking(&request.name, Some(far));
    };
    tell(0);
    image
        .unpack(&unpacking.rootfs(), limits, tell)
        .map_err(|error| refused(&error))?;
    unpacking.commit(&key).map_err(|error| failed(&error))
}

/// Ends what is told of an image's progress.
struct Told<'a>(&'a Standalone, &'a RunRequest);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.set_unpacking(&self.1.name, None);
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Problem {
    let title = "the image can't be used";
    Problem::refused(400, ProblemKind::Image, title, problem::chain(error))
}

fn failed(error: &ImageError) -> Problem {
    Problem::failed(
        ProblemKind::Images,
        "the image store can't be used",
        problem::chain(error),
    )
}
