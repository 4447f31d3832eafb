//! Directories in the OCI image layout (`image-layout.md`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::copy::Store;
use crate::digest::Digest;
use crate::document::{Descriptor, Index, media, parse};
use crate::error::{Error, shown};
use crate::image::Blobs;
use crate::limits::DOCUMENT_BYTES_MAX;

/// The annotation that names an image of a layout (`annotations.md`).
pub const NAME: &str = "org.opencontainers.image.ref.name";
const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";

/// A layout.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Opens one that is there.
    ///
    /// # Errors
    /// When the directory is no layout of a version that is known here.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let mark = dir.join(MARK);
        let bytes = whole(&mark).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Error::Missing(format!(
                    "`{}` is not an OCI image layout: it has no file `{MARK}`",
                    dir.display()
                ))
            }
            other => other,
        })?;
        let value: serde_json::Value = parse("the file `oci-layout`", &bytes)?;
        let version = value["imageLayoutVersion"].as_str().unwrap_or_default();
        if !version.starts_with("1.") {
            return Err(Error::Unsupported(format!(
                "the layout `{}` is of version `{}`, known is 1.0.0",
                dir.display(),
                shown(version.as_bytes())
            )));
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Opens one, or makes an empty one where nothing is.
    ///
    /// # Errors
    /// When something else is there.
    pub fn make(dir: &Path) -> Result<Self, Error> {
        let blobs = dir.join("blobs/sha256");
        let there = match fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => false,
        };
        if there {
            return Self::open(dir);
        }
        fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let mark = json!({ "imageLayoutVersion": "1.0.0" });
        replace(&dir.join(INDEX), index(Vec::new()).as_bytes())?;
        replace(&dir.join(MARK), mark.to_string().as_bytes())?;
        Self::open(dir)
    }

    fn index(&self) -> Result<Index, Error> {
        parse("the layout's `index.json`", &whole(&self.dir.join(INDEX))?)
    }

    /// The image of a tag; without one, the only one.
    ///
    /// # Errors
    /// When there is no such image, or there are several.
    pub fn root(&self, tag: Option<&str>) -> Result<Descriptor, Error> {
        let all = self.index()?.manifests;
        let name = |entry: &Descriptor| entry.annotations.get(NAME).cloned();
        let found = match tag {
            Some(tag) => all.iter().find(|it| name(it).as_deref() == Some(tag)),
            None => all.first().filter(|_| all.len() == 1),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = all.iter().filter_map(name).take(20).collect();
            let at = self.dir.display();
            Error::Missing(match (tag, &names[..]) {
                (_, []) if all.is_empty() => format!("the layout `{at}` is empty"),
                (Some(tag), []) => format!("the layout `{at}` has no tags: leave out `{tag}`"),
                (Some(tag), _) => {
                    format!("the layout `{at}` has no `{tag}`, but {}", names.join(", "))
                }
                (None, _) => format!(
                    "the layout `{at}` has several images, name one: {}",
                    names.join(", ")
                ),
            })
        })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let blobs = self.dir.join("blobs").join(digest.algorithm_name());
        blobs.join(digest.hex())
    }
}

impl Blobs for Layout {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Error> {
        Ok(Box::new(open(&self.blob(&descriptor.digest))?))
    }
}

impl Store for Layout {
    fn has(&mut self, descriptor: &Descriptor) -> Result<bool, Error> {
        let metadata = fs::metadata(self.blob(&descriptor.digest));
        Ok(metadata.is_ok_and(|it| it.is_file() && it.len() == descriptor.size))
    }

    fn put(&mut self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), Error> {
        let path = self.blob(&descriptor.digest);
        let above = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(above).map_err(Error::io("create", above))?;
        let temporary = temporary(&path);
        let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let copied = io::copy(content, &mut file)
            .map_err(Error::io("write", &temporary))
            .and_then(|_| file.sync_all().map_err(Error::io("write", &temporary)))
            .and_then(|()| fs::rename(&temporary, &path).map_err(Error::io("write", &path)));
        copied.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    fn name(&mut self, manifest: &Descriptor, tag: Option<&str>) -> Result<(), Error> {
        let mut all = self.index()?.manifests;
        let named = |entry: &Descriptor| entry.annotations.get(NAME).map(String::as_str) == tag;
        all.retain(|entry| !named(entry));
        let mut entry = manifest.clone();
        if let Some(tag) = tag {
            entry.annotations.insert(NAME.to_owned(), tag.to_owned());
        }
        all.push(entry);
        replace(&self.dir.join(INDEX), index(all).as_bytes())
    }
}

fn index(manifests: Vec<Descriptor>) -> String {
    let index = Index {
        schema_version: 2,
        media_type: media::INDEX.to_owned(),
        manifests,
    };
    serde_json::to_string(&index).expect("an index has a form in JSON")
}

/// A regular file: what is none must not make the reader wait.
fn open(path: &Path) -> Result<File, Error> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path);
    let file = file.map_err(Error::io("open", path))?;
    match file
        .metadata()
        .map_err(Error::io("look at", path))?
        .is_file()
    {
        true => Ok(file),
        false => Err(Error::malformed(
            path.display().to_string(),
            "it is not a regular file",
        )),
    }
}

/// All of a document.
fn whole(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::TooLarge {
            what: path.display().to_string(),
            limit: DOCUMENT_BYTES_MAX,
            unit: "bytes",
        });
    }
    Ok(bytes)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = temporary(path);
    fs::write(&temporary, bytes).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("write", path))
}

/// Beside it, so that it can be renamed; of this process, so that two don't meet.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
