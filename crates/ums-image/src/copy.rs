//! Writing images: layers of one that is there, with another configuration and more layers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::archive::NewArchive;
use crate::digest::{Digest, Verified};
use crate::document::{Descriptor, Manifest, media};
use crate::error::Error;
use crate::image::{Image, Layer};
use crate::layout::Layout;
use crate::limits::Limits;
use crate::reference::{Reference, Which};
use crate::registry::{Access, Registry};

/// Where an image is written to.
pub trait Store {
    /// Whether it has some content already.
    ///
    /// # Errors
    /// When it can't be told.
    fn has(&mut self, descriptor: &Descriptor) -> Result<bool, Error>;

    /// Takes content, of exactly what the descriptor says; its reader compares it.
    ///
    /// # Errors
    /// When it can't be read or written.
    fn put(&mut self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), Error>;

    /// Gives an image, all of which has been put, its name.
    ///
    /// # Errors
    /// When it can't be written.
    fn name(&mut self, manifest: &Descriptor, tag: Option<&str>) -> Result<(), Error>;
}

/// A layer that is new, in a file without a name.
pub struct NewLayer {
    /// Uncompressed.
    pub plain: File,
    /// Digest and length of that.
    pub diff_id: (Digest, u64),
    /// By gzip.
    pub gzip: File,
    /// Digest and length of that.
    pub digest: (Digest, u64),
}

/// What becomes of an image.
pub struct Changed<'a> {
    /// The image whose layers are the lower ones.
    pub image: &'a Image,
    /// The layer above.
    pub layer: &'a NewLayer,
    /// The configuration.
    pub config: Vec<u8>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// Where an image is written to, and by which name.
enum Destination {
    Layout(Layout, Option<String>),
    Archive(Box<NewArchive>, Option<String>),
    Registry(Box<Registry>, String),
}

impl Destination {
    fn open(to: &Reference, access: &Access) -> Result<Self, Error> {
        match to {
            Reference::Layout { dir, tag } => Ok(Self::Layout(Layout::make(dir)?, tag.clone())),
            Reference::Archive { file, tag } => Ok(Self::Archive(
                Box::new(NewArchive::create(file)?),
                tag.clone(),
            )),
            Reference::Registry(repository, Which::Tag(tag)) => {
                let registry = Registry::new(repository, access)?;
                Ok(Self::Registry(Box::new(registry), tag.clone()))
            }
            Reference::Registry(_, Which::Digest(_)) => Err(Error::Unsupported(
                "what is written has a digest of its own: name a tag".to_owned(),
            )),
            Reference::Rootfs(dir) => Err(Error::Unsupported(format!(
                "`{}` is a directory: an image is written to oci:DIR, docker-archive:FILE or docker://HOST/NAME",
                dir.display()
            ))),
        }
    }

    fn store(&mut self) -> &mut dyn Store {
        match self {
            Self::Layout(layout, _) => layout,
            Self::Archive(archive, _) => &mut **archive,
            Self::Registry(registry, _) => &mut **registry,
        }
    }
}

/// Writes a changed image; returns the digest of its manifest.
///
/// # Errors
/// When something can't be read or written, or is not what its digest says.
pub fn write(changed: &mut Changed<'_>, to: &Reference, access: &Access) -> Result<Digest, Error> {
    let mut destination = Destination::open(to, access)?;
    // Engines of before 2024 read an archive's layers uncompressed only.
    let plain = matches!(destination, Destination::Archive(..));
    let mut layers = Vec::new();
    for layer in &changed.image.layers {
        let store = destination.store();
        layers.push(match plain || !layer.compared {
            true => put_plain(changed.image, layer, store)?,
            false => put_raw(changed.image, layer, store)?,
        });
    }
    layers.push(put_new(changed.layer, plain, destination.store())?);
    let config = descriptor(
        media::CONFIG,
        Digest::of(&changed.config),
        changed.config.len() as u64,
    );
    put(destination.store(), &config, &mut &changed.config[..])?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::MANIFEST.to_owned(),
        config,
        layers,
        annotations: std::mem::take(&mut changed.annotations),
    };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has a form in JSON");
    let named = descriptor(media::MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    match destination {
        Destination::Archive(archive, tag) => archive.finish(&manifest, tag.as_deref())?,
        Destination::Layout(mut layout, tag) => {
            put(&mut layout, &named, &mut &bytes[..])?;
            layout.name(&named, tag.as_deref())?;
        }
        Destination::Registry(mut registry, tag) => {
            put(&mut *registry, &named, &mut &bytes[..])?;
            registry.name(&named, Some(&tag))?;
        }
    }
    Ok(named.digest)
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn put(store: &mut dyn Store, what: &Descriptor, content: &mut dyn Read) -> Result<(), Error> {
    match store.has(what)? {
        true => Ok(()),
        false => store.put(what, content),
    }
}

/// A layer as it is: no digest changes.
fn put_raw(image: &Image, layer: &Layer, store: &mut dyn Store) -> Result<Descriptor, Error> {
    let mut kept = layer.descriptor.clone();
    let oci = media::oci_layer(&kept.media_type).unwrap_or(media::LAYER);
    kept.media_type = oci.to_owned();
    if !store.has(&kept)? {
        let what = format!("the layer {}", kept.digest);
        let mut raw = Verified::new(image.raw(layer)?, what, &kept.digest, kept.size);
        store.put(&kept, &mut raw)?;
        raw.finish()?;
    }
    Ok(kept)
}

/// A layer uncompressed: its length is not known before it has been read once.
fn put_plain(image: &Image, layer: &Layer, store: &mut dyn Store) -> Result<Descriptor, Error> {
    let limit = Limits::default().bytes;
    let length = image.layer(layer, limit, &mut |_| (), |_| Ok(()))?;
    let plain = descriptor(media::LAYER, layer.diff_id.clone(), length);
    if !store.has(&plain)? {
        image.layer(layer, limit, &mut |_| (), |content| {
            store.put(&plain, content)
        })?;
    }
    Ok(plain)
}

fn put_new(layer: &NewLayer, plain: bool, store: &mut dyn Store) -> Result<Descriptor, Error> {
    let (media_type, (digest, length), mut file) = match plain {
        true => (media::LAYER, &layer.diff_id, &layer.plain),
        false => (media::LAYER_GZIP, &layer.digest, &layer.gzip),
    };
    let what = descriptor(media_type, digest.clone(), *length);
    file.seek(SeekFrom::Start(0))
        .map_err(Error::at("read", "the new layer"))?;
    put(store, &what, &mut file)?;
    Ok(what)
}

/// Counts and digests what is written through it.
pub(crate) struct Digesting<W> {
    pub(crate) out: W,
    hasher: crate::digest::Hasher,
    length: u64,
}

impl<W> Digesting<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            hasher: crate::digest::Hasher::new(crate::digest::Algorithm::Sha256),
            length: 0,
        }
    }

    pub(crate) fn finish(self) -> (W, (Digest, u64)) {
        (self.out, (self.hasher.finish(), self.length))
    }
}

impl<W: io::Write> io::Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
