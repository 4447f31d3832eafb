//! A service that has been frozen and checkpointed, to arrive somewhere else.

use super::*;

pub fn program() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_ums-agent")).with_file_name("ums-runtime");
    let ums = program.with_file_name("ums");
    (program.exists() && ums.exists()).then_some(program)
}

/// A counting service that is frozen, its checkpoint, and its root filesystem for another place.
pub struct Departed {
    pub place: Place,
    pub keeper: Keeper,
    pub images: MemoryDir,
    pub stored: Stored,
    pub root: tempfile::TempDir,
    pub lower: tempfile::TempDir,
    pub bundle: PathBuf,
}

pub fn departed(name: &str) -> Option<Departed> {
    let counts = |place: &Place, _: &Keeper| {
        wait_until("it counts", || last_tick(&place.log()) > 5);
    };
    departed_as(name, CHANGING, counts, CLOSE)
}

/// Another service, with what is to be true of it before it departs.
pub fn departed_as(
    name: &str,
    script: &str,
    prepare: impl FnOnce(&Place, &Keeper),
    request: DumpRequest,
) -> Option<Departed> {
    let (bundle, lower) = ready(name)?;
    if program().is_none() {
        skip(
            name,
            "needs ums and ums-runtime: `cargo build -p ums -p ums-runtime`",
        );
        return None;
    }
    let place = Place::new(&bundle, lower.path(), "departing");
    let keeper = place.start();
    run(&place, &keeper, script);
    prepare(&place, &keeper);
    let (images, stored) = checkpoint_as(&keeper, request);
    let root = tempfile::tempdir().unwrap();
    for layer in [lower.path(), &place.config.upper] {
        let mut from = layer.as_os_str().to_owned();
        from.push("/.");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(root.path())
            .status();
        assert!(copied.unwrap().success());
    }
    Some(Departed {
        place,
        keeper,
        images,
        stored,
        root,
        lower,
        bundle,
    })
}

impl Departed {
    /// Puts what the service has changed into the upper layer of another container.
    pub fn fill(&self, upper: &str) {
        let mut changed = self.place.config.upper.clone().into_os_string();
        changed.push("/.");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(changed)
            .arg(upper)
            .status();
        assert!(copied.unwrap().success());
    }

    /// The end of it.
    pub fn over(self) {
        self.keeper.call(&Request::Quit, &[]).unwrap();
        wait_until("the cgroup is gone", || !self.place.cgroup_dir().exists());
        drop(self.lower);
    }
}
