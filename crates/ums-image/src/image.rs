//! An image, wherever it is: its configuration and its layers.

use std::io::Read;
use std::path::Path;

use crate::archive::Archive;
use crate::compression::decode;
use crate::digest::{Digest, Verified};
use crate::document::{Config, Descriptor, Index, Manifest, Platform, media, parse};
use crate::error::Error;
use crate::layout::Layout;
use crate::limits::{DOCUMENT_BYTES_MAX, Limits};
use crate::reference::Reference;
use crate::registry::{Access, Registry};
use crate::unpack::Unpacker;

/// The most indexes inside one another.
const INDEX_DEPTH_MAX: usize = 3;

/// Where content is found by its digest.
pub trait Blobs {
    /// Opens content that is not compared yet; `descriptor` says what is expected.
    ///
    /// # Errors
    /// When it is not there or can't be reached.
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Error>;
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Names it where it is.
    pub descriptor: Descriptor,
    /// Digest of it, uncompressed.
    pub diff_id: Digest,
    /// Whether it is compared with the descriptor's digest, too: an archive knows none of what it holds
    /// compressed.
    pub compared: bool,
}

/// An image for this machine, of which documents have been read and compared.
pub struct Image {
    blobs: Box<dyn Blobs>,
    /// Its configuration as it was made.
    pub config_bytes: Vec<u8>,
    /// Digest of that: what engines call the image's id.
    pub config_digest: Digest,
    /// What of it is understood here.
    pub config: Config,
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
    /// Annotations of its manifest.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Digest of its manifest, where it has one.
    pub manifest_digest: Option<Digest>,
}

impl Image {
    /// Opens an image; reads its documents.
    ///
    /// # Errors
    /// When it is not there, does not hold what its digests say, or is for other machines.
    pub fn open(reference: &Reference, access: &Access, limits: &Limits) -> Result<Self, Error> {
        match reference {
            Reference::Layout { dir, tag } => {
                let layout = Layout::open(dir)?;
                let root = layout.root(tag.as_deref())?;
                Self::from_manifest(Box::new(layout), &root, limits)
            }
            Reference::Archive { file, tag } => {
                let (archive, found) = Archive::open(file, tag.as_deref())?;
                let config = read(&archive, "the image's configuration", &found.config, true)?;
                let manifest = (found.manifest(), None);
                Self::assembled(Box::new(archive), manifest, config, limits, false)
            }
            Reference::Registry(repository, which) => {
                let registry = Registry::new(repository, access)?;
                let root = registry.root(which)?;
                Self::from_manifest(Box::new(registry), &root, limits)
            }
            Reference::Rootfs(dir) => Err(Error::Unsupported(format!(
                "`{}` is a root filesystem, and no image",
                dir.display()
            ))),
        }
    }

    fn from_manifest(
        blobs: Box<dyn Blobs>,
        root: &Descriptor,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let (manifest, digest) = find(&*blobs, root)?;
        let config = read(&*blobs, "the image's configuration", &manifest.config, true)?;
        Self::assembled(blobs, (manifest, Some(digest)), config, limits, true)
    }

    fn assembled(
        blobs: Box<dyn Blobs>,
        (manifest, manifest_digest): (Manifest, Option<Digest>),
        config_bytes: Vec<u8>,
        limits: &Limits,
        compared: bool,
    ) -> Result<Self, Error> {
        let what = "the image's configuration";
        let config: Config = parse(what, &config_bytes)?;
        let here = Platform::here();
        if !here.runs(&config.platform) {
            return Err(Error::Unsupported(format!(
                "the image is for {}, this machine is {here}: name an image for {here}",
                config.platform
            )));
        }
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let detail = format!(
                "it names {} layers, the manifest {}",
                diff_ids.len(),
                manifest.layers.len()
            );
            return Err(Error::malformed(what, detail));
        }
        if diff_ids.len() > limits.layers {
            return Err(Error::TooLarge {
                what: "the image".to_owned(),
                limit: limits.layers as u64,
                unit: "layers",
            });
        }
        if let Some(layer) = manifest.layers.iter().find(|layer| !is_layer(layer)) {
            return Err(Error::Unsupported(format!(
                "a layer is of the type `{}`, which is no layer of files that an image brings: name an image of \
                 a container",
                layer.media_type.escape_debug()
            )));
        }
        let layers = manifest.layers.into_iter().zip(diff_ids.iter().cloned());
        let layer = |(descriptor, diff_id)| Layer {
            descriptor,
            diff_id,
            compared,
        };
        Ok(Self {
            blobs,
            layers: layers.map(layer).collect(),
            config_digest: manifest.config.digest,
            annotations: manifest.annotations,
            config_bytes,
            config,
            manifest_digest,
        })
    }

    /// Names the root filesystem that the layers make (`config.md`, "Layer ChainID"): the same in each image that
    /// has these layers.
    pub fn chain_id(&self) -> Digest {
        let mut layers = self.layers.iter().map(|layer| layer.diff_id.clone());
        let first = layers.next().unwrap_or_else(|| Digest::of(b""));
        layers.fold(first, |chain, diff_id| {
            Digest::of(format!("{chain} {diff_id}").as_bytes())
        })
    }

    /// Bytes of the layers, as they are where they are.
    pub fn layer_bytes(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer.descriptor.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Unpacks all layers into an empty directory; tells `progress` how many bytes of [`layer_bytes`](Self::layer_bytes)
    /// have been read.
    ///
    /// # Errors
    /// When something can't be read or written, is not what its digest says, or is not allowed in a layer.
    pub fn unpack(
        &self,
        rootfs: &Path,
        limits: Limits,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let mut unpacker = Unpacker::new(rootfs, limits)?;
        let (mut left, mut done) = (limits.bytes, 0);
        for layer in &self.layers {
            let counted = &mut |count| {
                done += count;
                progress(done);
            };
            let read = self.layer(layer, left, counted, |plain| unpacker.layer(plain))?;
            left = left.saturating_sub(read);
        }
        Ok(())
    }

    /// Has a layer read, uncompressed, and compares it on both sides of its compression. Returns its length.
    ///
    /// # Errors
    /// As `work`; when it can't be read, is not what its digests say, or longer than `limit`.
    pub fn layer(
        &self,
        layer: &Layer,
        limit: u64,
        counted: &mut dyn FnMut(u64),
        work: impl FnOnce(&mut dyn Read) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let raw = self.blobs.open(&layer.descriptor)?;
        let raw = Counted(raw, counted);
        if !layer.compared {
            return plain(raw, layer, limit, work);
        }
        let Descriptor { digest, size, .. } = &layer.descriptor;
        let mut raw = Verified::new(raw, format!("the layer {digest}"), digest, *size);
        let read = plain(&mut raw, layer, limit, work)?;
        raw.finish()?;
        Ok(read)
    }

    /// Opens a layer as it is stored; it is compared while it is read, if its reader reads all of it.
    ///
    /// # Errors
    /// When it is not there or can't be reached.
    pub fn raw(&self, layer: &Layer) -> Result<Box<dyn Read + '_>, Error> {
        self.blobs.open(&layer.descriptor)
    }
}

fn plain(
    raw: impl Read,
    layer: &Layer,
    limit: u64,
    work: impl FnOnce(&mut dyn Read) -> Result<(), Error>,
) -> Result<u64, Error> {
    let what = format!("the layer {}, uncompressed,", layer.diff_id);
    let mut plain = Verified::new(decode(raw)?, what, &layer.diff_id, limit);
    work(&mut plain)?;
    plain.finish()
}

fn is_layer(descriptor: &Descriptor) -> bool {
    media::oci_layer(&descriptor.media_type).is_some()
}

/// Follows indexes to the manifest for this machine.
fn find(blobs: &dyn Blobs, root: &Descriptor) -> Result<(Manifest, Digest), Error> {
    let mut at = root.clone();
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = read(blobs, "the manifest", &at, true)?;
        let value: serde_json::Value = parse("the manifest", &bytes)?;
        if value.get("manifests").is_none() {
            return Ok((parse("the manifest", &bytes)?, at.digest));
        }
        at = choose(parse("the index", &bytes)?)?;
    }
    Err(Error::malformed("the index", "it leads to too many others"))
}

/// The image for this machine.
fn choose(index: Index) -> Result<Descriptor, Error> {
    let here = Platform::here();
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|it| here.runs(it));
    let only = || match &index.manifests[..] {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    let chosen = index.manifests.iter().find(fits).or_else(only).cloned();
    chosen.ok_or_else(|| {
        let names = index.manifests.iter().filter_map(|it| it.platform.as_ref());
        let names: Vec<_> = names.take(20).map(ToString::to_string).collect();
        Error::Unsupported(format!(
            "the image is for {}, not for this machine ({here}): name another image",
            names.join(", ")
        ))
    })
}

/// Reads a document as a whole, and compares it.
pub(crate) fn read(
    blobs: &dyn Blobs,
    what: &str,
    descriptor: &Descriptor,
    compare: bool,
) -> Result<Vec<u8>, Error> {
    if descriptor.size > DOCUMENT_BYTES_MAX {
        return Err(Error::TooLarge {
            what: what.to_owned(),
            limit: DOCUMENT_BYTES_MAX,
            unit: "bytes",
        });
    }
    let mut bytes = Vec::new();
    let reader = blobs.open(descriptor)?;
    reader
        .take(descriptor.size + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::at("read", what))?;
    if bytes.len() as u64 != descriptor.size {
        let detail = format!("it should have {} bytes", descriptor.size);
        return Err(Error::malformed(what, detail));
    }
    if compare {
        descriptor.digest.check(what, &bytes)?;
    }
    Ok(bytes)
}

struct Counted<'a, R>(R, &'a mut dyn FnMut(u64));

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        (self.1)(count as u64);
        Ok(count)
    }
}
