//! Registries (OCI distribution specification 1.1), by HTTP and the authentication that Docker's registries have
//! (CNCF distribution, "Token Authentication").

mod challenge;
mod client;
mod login;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;

use crate::copy::Store;
use crate::digest::Digest;
use crate::document::{Descriptor, media};
use crate::error::Error;
use crate::image::Blobs;
use crate::reference::{Repository, Which};
use client::Client;

pub use login::Login;

/// With what a registry is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Without TLS; a registry on this machine may be without it anyway.
    pub plain_http: bool,
    /// Who asks.
    pub login: Option<Login>,
}

/// A repository of a registry.
pub struct Registry {
    client: Client,
    name: String,
    /// Manifests that were read, or are to be written.
    manifests: RefCell<BTreeMap<Digest, Vec<u8>>>,
}

/// What is accepted as a manifest.
const ACCEPT: [&str; 4] = [
    media::INDEX,
    media::MANIFEST,
    media::DOCKER_LIST,
    media::DOCKER_MANIFEST,
];

impl Registry {
    /// Nothing is asked yet, but whether a registry of this machine has TLS.
    ///
    /// # Errors
    /// When the machine's certificates can't be read.
    pub fn new(repository: &Repository, access: &Access) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(&repository.host, access)?,
            name: repository.name.clone(),
            manifests: RefCell::default(),
        })
    }

    fn path(&self, kind: &str, last: &str) -> String {
        format!("/v2/{}/{kind}/{last}", self.name)
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.name)
    }

    /// Reads the manifest, or index, of an image.
    ///
    /// # Errors
    /// When there is none, it can't be had, or it is not what its digest says.
    pub fn root(&self, which: &Which) -> Result<Descriptor, Error> {
        let last = match which {
            Which::Tag(tag) => tag.clone(),
            Which::Digest(digest) => digest.to_string(),
        };
        let path = self.path("manifests", &last);
        let (media_type, bytes) = self.client.document(&path, &ACCEPT, &self.scope("pull"))?;
        let digest = match which {
            Which::Digest(digest) => {
                digest.check("the manifest", &bytes)?;
                digest.clone()
            }
            Which::Tag(_) => Digest::of(&bytes),
        };
        let size = bytes.len() as u64;
        self.manifests.borrow_mut().insert(digest.clone(), bytes);
        Ok(Descriptor {
            media_type,
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
        })
    }
}

fn is_manifest(media_type: &str) -> bool {
    ACCEPT.contains(&media_type)
}

impl Blobs for Registry {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Error> {
        let Descriptor { digest, .. } = descriptor;
        if let Some(bytes) = self.manifests.borrow().get(digest) {
            return Ok(Box::new(std::io::Cursor::new(bytes.clone())));
        }
        let scope = self.scope("pull");
        if is_manifest(&descriptor.media_type) {
            let path = self.path("manifests", &digest.to_string());
            let (_, bytes) = self.client.document(&path, &ACCEPT, &scope)?;
            return Ok(Box::new(std::io::Cursor::new(bytes)));
        }
        let path = self.path("blobs", &digest.to_string());
        self.client.blob(&path, &scope)
    }
}

impl Store for Registry {
    fn has(&mut self, descriptor: &Descriptor) -> Result<bool, Error> {
        if is_manifest(&descriptor.media_type) {
            return Ok(false);
        }
        let path = self.path("blobs", &descriptor.digest.to_string());
        self.client.exists(&path, &self.scope("pull,push"))
    }

    fn put(&mut self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), Error> {
        if is_manifest(&descriptor.media_type) {
            // It is written under its name.
            let mut bytes = Vec::new();
            let read = content.read_to_end(&mut bytes);
            read.map_err(Error::at("read", "the manifest"))?;
            let digest = descriptor.digest.clone();
            self.manifests.borrow_mut().insert(digest, bytes);
            return Ok(());
        }
        let path = self.path("blobs", "uploads/");
        let scope = self.scope("pull,push");
        self.client.upload(&path, &scope, descriptor, content)
    }

    fn name(&mut self, manifest: &Descriptor, tag: Option<&str>) -> Result<(), Error> {
        let digest = manifest.digest.to_string();
        let path = self.path("manifests", tag.unwrap_or(&digest));
        let manifests = self.manifests.borrow();
        let bytes = manifests.get(&manifest.digest);
        let bytes = bytes.ok_or_else(|| Error::Missing("there is no manifest".to_owned()))?;
        let scope = self.scope("pull,push");
        self.client
            .put_document(&path, &scope, &manifest.media_type, bytes)
    }
}
