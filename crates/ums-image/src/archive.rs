//! What `docker save` writes: an archive with a file `manifest.json` that names a configuration and layers for each
//! image.
//!
//! Its layers are uncompressed as a rule, and known by their names; releases before 25 of the Docker Engine write
//! symbolic links where two images share one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::copy::Store;
use crate::digest::Digest;
use crate::document::{Config, Descriptor, Manifest, media, parse};
use crate::error::{Error, shown};
use crate::image::Blobs;
use crate::limits::DOCUMENT_BYTES_MAX;
use crate::tar::{Entry, Kind, Reader, Writer};

const MANIFEST: &str = "manifest.json";
/// The most entries of an archive: several for each layer.
const ENTRIES_MAX: usize = 100_000;
/// The most links that lead to one another.
const LINKS_MAX: usize = 8;

/// An image as `manifest.json` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An archive that is read.
pub struct Archive {
    path: PathBuf,
    file: File,
    /// Content by its digest, as far as this archive's image has it.
    places: BTreeMap<Digest, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// What was found of the image.
pub struct Found {
    /// Its configuration.
    pub config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Found {
    /// A manifest, which the archive has none of.
    pub fn manifest(&self) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.to_owned(),
            config: self.config.clone(),
            layers: self.layers.clone(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Archive {
    /// Opens an archive, and finds the image of a tag (`NAME:TAG`) there; without one, the only one.
    ///
    /// # Errors
    /// When it can't be read, or there is no such image.
    pub fn open(path: &Path, tag: Option<&str>) -> Result<(Self, Found), Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let entries = entries(path, &file)?;
        let mut archive = Self {
            path: path.to_owned(),
            file,
            places: BTreeMap::new(),
        };
        let manifest = place(&entries, MANIFEST).ok_or_else(|| {
            let at = path.display();
            Error::Missing(format!(
                "`{at}` is not what `docker save` writes: it has no `{MANIFEST}`"
            ))
        })?;
        let all: Vec<Named> = parse(MANIFEST, &archive.document(MANIFEST, manifest)?)?;
        let named = choose(&all, tag, path)?;
        let found = archive.find(named, &entries)?;
        Ok((archive, found))
    }

    /// Digests are computed of the configuration, and believed of layers until they are read.
    fn find(&mut self, named: &Named, entries: &Entries) -> Result<Found, Error> {
        let missing = |name: &str| {
            let detail = format!("it names `{}`, which is not there", shown(name.as_bytes()));
            Error::malformed(MANIFEST, detail)
        };
        let at = place(entries, &named.config).ok_or_else(|| missing(&named.config))?;
        let what = "the image's configuration";
        let bytes = self.document(what, at)?;
        let parsed: Config = parse(what, &bytes)?;
        let config = self.descriptor(media::CONFIG, Digest::of(&bytes), at);
        let diff_ids = parsed.rootfs.diff_ids;
        if diff_ids.len() != named.layers.len() {
            return Err(Error::malformed(
                what,
                "it has another number of layers than the archive",
            ));
        }
        let mut layers = Vec::new();
        for (name, diff_id) in named.layers.iter().zip(diff_ids) {
            let at = place(entries, name).ok_or_else(|| missing(name))?;
            layers.push(self.descriptor(media::LAYER, diff_id, at));
        }
        Ok(Found { config, layers })
    }

    fn descriptor(&mut self, media_type: &str, digest: Digest, at: Place) -> Descriptor {
        self.places.insert(digest.clone(), at);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: at.size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    fn document(&self, what: &str, at: Place) -> Result<Vec<u8>, Error> {
        if at.size > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge {
                what: what.to_owned(),
                limit: DOCUMENT_BYTES_MAX,
                unit: "bytes",
            });
        }
        let mut bytes = Vec::new();
        let read = self.at(at).and_then(|mut it| it.read_to_end(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    fn at(&self, place: Place) -> io::Result<impl Read + use<>> {
        // One of its own each: descriptors that are duplicates would share their place in the file.
        let mut file = File::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.file)
        ))?;
        file.seek(SeekFrom::Start(place.offset))?;
        Ok(file.take(place.size))
    }
}

impl Blobs for Archive {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Error> {
        let place = self.places.get(&descriptor.digest).copied();
        let place = place
            .ok_or_else(|| Error::Missing(format!("the archive has no {}", descriptor.digest)))?;
        let reader = self.at(place).map_err(Error::io("read", &self.path))?;
        Ok(Box::new(reader))
    }
}

type Entries = BTreeMap<String, Item>;

enum Item {
    File(Place),
    Link(String),
}

fn entries(path: &Path, file: &File) -> Result<Entries, Error> {
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    if !metadata.is_file() {
        return Err(Error::Unsupported(format!(
            "`{}` is not a regular file: an archive is looked into at several places",
            path.display()
        )));
    }
    let mut reader = Reader::seeking(file);
    let mut entries = Entries::new();
    loop {
        let entry = reader
            .entry()
            .map_err(|error| compressed(path, file).unwrap_or(error))?;
        let Some(entry) = entry else {
            return Ok(entries);
        };
        let name = normal(&String::from_utf8_lossy(&entry.path));
        let item = match entry.kind {
            Kind::File => Item::File(Place {
                offset: entry.offset,
                size: entry.size,
            }),
            Kind::Symlink => Item::Link(beside(&name, &String::from_utf8_lossy(&entry.link))),
            Kind::HardLink => Item::Link(normal(&String::from_utf8_lossy(&entry.link))),
            _ => continue,
        };
        entries.insert(name, item);
        if entries.len() > ENTRIES_MAX {
            return Err(Error::TooLarge {
                what: "the archive".to_owned(),
                limit: ENTRIES_MAX as u64,
                unit: "entries",
            });
        }
    }
}

/// Whether an archive can't be read because it is compressed as a whole.
fn compressed(path: &Path, mut file: &File) -> Option<Error> {
    let mut first = [0; 4];
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut first).ok()?;
    matches!(
        first,
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', ..] | [b'B', b'Z', b'h', _]
    )
    .then(|| {
        Error::Unsupported(format!(
            "`{}` is compressed: uncompress it first",
            path.display()
        ))
    })
}

/// A path without what means nothing, and with `..` resolved inside the archive.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn beside(name: &str, link: &str) -> String {
    match name.rsplit_once('/') {
        Some((above, _)) => normal(&format!("{above}/{link}")),
        None => normal(link),
    }
}

fn place(entries: &Entries, name: &str) -> Option<Place> {
    let mut name = normal(name);
    for _ in 0..LINKS_MAX {
        match entries.get(&name)? {
            Item::File(place) => return Some(*place),
            Item::Link(to) => name = to.clone(),
        }
    }
    None
}

fn choose<'a>(all: &'a [Named], tag: Option<&str>, path: &Path) -> Result<&'a Named, Error> {
    let tags = |named: &Named| named.repo_tags.clone().unwrap_or_default();
    let found = match tag {
        Some(tag) => all
            .iter()
            .find(|it| tags(it).iter().any(|other| is_tag(tag, other))),
        None => all.first().filter(|_| all.len() == 1),
    };
    found.ok_or_else(|| {
        let names: Vec<_> = all.iter().flat_map(tags).take(20).collect();
        let at = path.display();
        Error::Missing(match tag {
            Some(tag) => format!(
                "the archive `{at}` has no image `{tag}`, but {}",
                names.join(", ")
            ),
            None => format!(
                "the archive `{at}` has {} images, name one: {}",
                all.len(),
                names.join(", ")
            ),
        })
    })
}

/// Names may be written short: `redis:7` is `docker.io/library/redis:7`.
fn is_tag(wanted: &str, tag: &str) -> bool {
    let short = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        match name
            .rsplit_once('/')
            .map_or(name, |(_, last)| last)
            .contains(':')
        {
            true => name.to_owned(),
            false => format!("{name}:latest"),
        }
    };
    short(wanted) == short(tag)
}

/// An archive that is written. It appears under its name when it is whole.
pub struct NewArchive {
    writer: Option<Writer<File>>,
    path: PathBuf,
    temporary: PathBuf,
    written: BTreeSet<Digest>,
}

impl NewArchive {
    /// Begins one.
    ///
    /// # Errors
    /// When the file can't be made, or something is there already.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Unsupported(format!(
                "`{}` is there already: name another file, or remove it",
                path.display()
            )));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let file = File::create_new(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(Self {
            writer: Some(Writer::new(file)),
            path: path.to_owned(),
            temporary,
            written: BTreeSet::new(),
        })
    }

    fn entry(&mut self, name: String, size: u64, content: &mut dyn Read) -> Result<(), Error> {
        let entry = Entry {
            size,
            ..Entry::new(name, Kind::File, 0o644)
        };
        let writer = self.writer.as_mut().expect("an archive is finished once");
        writer.entry(&entry, content)
    }

    /// Writes the names, and the end; the archive is whole then.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self, manifest: &Manifest, tag: Option<&str>) -> Result<(), Error> {
        let layer = |layer: &Descriptor| format!("{}.tar", layer.digest.hex());
        let named = [Named {
            config: format!("{}.json", manifest.config.digest.hex()),
            repo_tags: tag.map(|tag| vec![tag.to_owned()]),
            layers: manifest.layers.iter().map(layer).collect(),
        }];
        let json = serde_json::to_vec(&named).expect("names have a form in JSON");
        self.entry(MANIFEST.to_owned(), json.len() as u64, &mut &json[..])?;
        let writer = self.writer.take().expect("an archive is finished once");
        let mut file = writer.finish()?;
        file.flush()
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&self.temporary, &self.path))
            .map_err(Error::io("write", &self.path))
    }
}

impl Store for NewArchive {
    fn has(&mut self, descriptor: &Descriptor) -> Result<bool, Error> {
        Ok(self.written.contains(&descriptor.digest))
    }

    fn put(&mut self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), Error> {
        let suffix = match descriptor.media_type == media::CONFIG {
            true => "json",
            false => "tar",
        };
        let name = format!("{}.{suffix}", descriptor.digest.hex());
        self.entry(name, descriptor.size, content)?;
        self.written.insert(descriptor.digest.clone());
        Ok(())
    }

    fn name(&mut self, _manifest: &Descriptor, _tag: Option<&str>) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for NewArchive {
    fn drop(&mut self) {
        // Of one that is whole nothing is left here.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
