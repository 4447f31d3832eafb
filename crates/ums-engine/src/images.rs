//! Images of engines beside those of the standalone host: read from the engine's layers, and received by the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ums_api::problem::{Problem, ProblemKind};
use ums_core::specification::ImageId;
use ums_node::host::{Images, Receiving};
use ums_node::problem;
use ums_standalone::images::ImageStore;

use crate::layers::Merged;

/// The most images of engines that are kept in mind.
const KNOWN_MAX: usize = 256;

/// Both.
pub(crate) struct AllImages {
    store: ImageStore,
    scratch: PathBuf,
    known: Mutex<BTreeMap<String, (ImageId, Arc<Merged>)>>,
}

impl AllImages {
    pub(crate) fn new(store: ImageStore, scratch: PathBuf) -> Self {
        Self {
            store,
            scratch,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, (ImageId, Arc<Merged>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which image these layers are, if they were read.
    pub(crate) fn of_layers(&self, lower: &str) -> Option<ImageId> {
        self.known().get(lower).map(|(id, _)| id.clone())
    }

    /// Reads the layers of an image, unless they were. Blocks as long as it takes to read all of it.
    pub(crate) fn read(&self, lower: &str) -> Result<ImageId, Problem> {
        if let Some(id) = self.of_layers(lower) {
            return Ok(id);
        }
        let failed = problem::failed(
            ProblemKind::Images,
            "the image of the container can't be read",
        );
        let merged = Merged::new(lower, &self.scratch).map_err(|error| failed(&error))?;
        let id = self
            .store
            .id_of(&merged.path())
            .map_err(|error| failed(&error))?;
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.pop_first();
        }
        known.insert(lower.to_owned(), (id.clone(), Arc::new(merged)));
        Ok(id)
    }

    fn merged(&self, id: &ImageId) -> Option<PathBuf> {
        let known = self.known();
        let mut all = known.values();
        all.find(|(known, _)| known == id)
            .map(|(_, merged)| merged.path())
    }
}

impl Images for AllImages {
    /// Only what is in the store can be started from.
    fn is_present(&self, id: &ImageId) -> bool {
        self.store.present(id)
    }

    fn rootfs(&self, id: &ImageId) -> PathBuf {
        match self.merged(id) {
            Some(path) if !self.store.present(id) => path,
            _ => self.store.rootfs(id),
        }
    }

    fn bytes(&self, id: &ImageId) -> Result<u64, Problem> {
        match self.merged(id) {
            Some(path) => Ok(ums_node::inspect::files_bytes(Path::new(&path))),
            None => Images::bytes(&self.store, id),
        }
    }

    fn receive(&self, id: &ImageId) -> Result<Box<dyn Receiving>, Problem> {
        Images::receive(&self.store, id)
    }
}
