//! Containers that a container runtime is to restore when its engine asks it to create them.
//!
//! Whoever awaits a service has an engine create a container for it, and offers a keeper under the id that the engine
//! has given the container. Nothing in the container says so: no variable, no annotation that would stay. When the
//! engine starts the container, its runtime finds the offer and takes it: once. A container with an offer that was
//! taken is not created again until the offer is withdrawn: what comes of the first is not decided.
//!
//! ```text
//!  DIR/ID/offer.json    there is a keeper
//!  DIR/ID/taken.json    the runtime restores, or has restored
//!  DIR/ID/restored      the processes are there, and nobody has started them
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const OFFER: &str = "offer.json";
const TAKEN: &str = "taken.json";
const RESTORED: &str = "restored";

/// The longest id of a container; engines give 64 characters.
const ID_LEN_MAX: usize = 128;

/// Who restores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Socket of the keeper.
    pub keeper: PathBuf,
}

/// Directory of offers, which root alone may enter.
#[derive(Debug, Clone)]
pub struct Offers {
    dir: PathBuf,
}

/// What there is for a container.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is an ordinary container.
    Nothing,
    /// An offer, which nobody else gets.
    Offer(Offer),
    /// One that was taken before.
    Taken,
}

impl Offers {
    /// Those in a directory, which need not be there.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory of one container's offer.
    ///
    /// # Errors
    /// `InvalidInput` where this can't be a container's id: those of runc are letters, digits and `_+-.`.
    pub fn place(&self, id: &str) -> io::Result<PathBuf> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        let is_id = !id.is_empty() && id.len() <= ID_LEN_MAX && id.chars().all(allowed);
        match is_id && !id.chars().all(|c| c == '.') {
            true => Ok(self.dir.join(id)),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{id}` is no container's id"),
            )),
        }
    }

    /// Offers a keeper for a container. An earlier offer is replaced.
    pub fn offer(&self, id: &str, offer: &Offer) -> io::Result<()> {
        self.withdraw(id)?;
        let place = self.place(id)?;
        fs::create_dir_all(&self.dir)?;
        private(&self.dir)?;
        fs::create_dir(&place)?;
        // Whole or not at all: the name comes last.
        let new = place.join("new");
        fs::write(&new, serde_json::to_vec(offer)?)?;
        fs::rename(new, place.join(OFFER))
    }

    /// Takes what is offered for a container.
    pub fn take(&self, id: &str) -> io::Result<Found> {
        let place = self.place(id)?;
        match fs::rename(place.join(OFFER), place.join(TAKEN)) {
            Ok(()) => Ok(Found::Offer(Self::taken(&place)?)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) if place.join(TAKEN).exists() => Ok(Found::Taken),
            Err(_) => Ok(Found::Nothing),
        }
    }

    /// The offer that was taken for a container, by its directory.
    pub fn taken(place: &Path) -> io::Result<Offer> {
        Ok(serde_json::from_slice(&fs::read(place.join(TAKEN))?)?)
    }

    /// Writes down that the processes are there.
    pub fn restored(place: &Path) -> io::Result<()> {
        fs::write(place.join(RESTORED), "")
    }

    /// Whether the processes of a container are there already, which nobody has started: from now on somebody has.
    pub fn start(&self, id: &str) -> io::Result<bool> {
        match fs::remove_file(self.place(id)?.join(RESTORED)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes an offer back; from now on it is an ordinary container.
    pub fn withdraw(&self, id: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.place(id)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_offer_is_taken_once_and_the_container_is_ordinary_when_it_is_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let offers = Offers::new(dir.path().join("runtime"));
        let offer = Offer {
            keeper: "/run/ums/keeper.sock".into(),
        };
        assert_eq!(offers.take("a1").unwrap(), Found::Nothing);
        offers.offer("a1", &offer).unwrap();
        assert_eq!(offers.take("b2").unwrap(), Found::Nothing);
        assert_eq!(offers.take("a1").unwrap(), Found::Offer(offer.clone()));
        assert_eq!(offers.take("a1").unwrap(), Found::Taken);
        let place = offers.place("a1").unwrap();
        assert_eq!(Offers::taken(&place).unwrap(), offer);
        assert!(!offers.start("a1").unwrap());
        Offers::restored(&place).unwrap();
        assert!(offers.start("a1").unwrap());
        assert!(!offers.start("a1").unwrap());
        offers.withdraw("a1").unwrap();
        offers.withdraw("a1").unwrap();
        assert_eq!(offers.take("a1").unwrap(), Found::Nothing);
    }

    #[test]
    fn no_id_leads_out_of_the_directory() {
        let offers = Offers::new("/run/ums/runtime");
        for id in ["", ".", "..", "a/b", "/etc", "a b", &"a".repeat(200)] {
            assert!(offers.place(id).is_err(), "{id}");
        }
    }
}
