use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::limits::Limits;
use crate::tar::{Entry, Kind, Writer};

/// The beginning of an ELF file without segments.
fn program() -> Vec<u8> {
    let mut program = vec![0; 64];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    program
}

fn programs(dir: &Path) -> Programs {
    fs::create_dir_all(dir.join("bundle/bin")).unwrap();
    for path in ["ums-agent", "ums-frontman", "bundle/bin/criu"] {
        fs::write(dir.join(path), program()).unwrap();
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::hard_link(dir.join("bundle/bin/criu"), dir.join("bundle/bin/runc")).unwrap();
    fs::write(dir.join("bundle/manifest.json"), "{}").unwrap();
    Programs {
        agent: dir.join("ums-agent"),
        frontman: dir.join("ums-frontman"),
        bundle: dir.join("bundle"),
    }
}

/// An archive as `docker save` writes it, of one layer with one file of the tester's.
fn saved(path: &Path) {
    let own = fs::metadata("/proc/self").unwrap();
    let mut layer = Writer::new(Vec::new());
    let mut file = Entry::new("file", Kind::File, 0o644);
    (file.uid, file.gid) = (
        std::os::unix::fs::MetadataExt::uid(&own),
        std::os::unix::fs::MetadataExt::gid(&own),
    );
    file.size = 5;
    layer.entry(&file, &mut &b"hello"[..]).unwrap();
    let layer = layer.finish().unwrap();
    let config = json!({
        "architecture": crate::document::Platform::here().architecture, "os": "linux", "unknown": 1,
        "created": "2024-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/entry"], "Cmd": ["cmd"], "User": "www", "Env": ["A=1"], "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "9/sctp": {}}, "Volumes": {"/data": {}},
            "Labels": {"a": "b"}, "StopSignal": "SIGQUIT", "Healthcheck": {"Test": ["CMD", "x"]},
        },
        "history": [{"created_by": "something"}],
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["l/layer.tar"]}]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut archive = Writer::new(fs::File::create(path).unwrap());
    for (name, content) in [
        ("c.json", config),
        ("l/layer.tar", layer),
        ("manifest.json", manifest),
    ] {
        let mut entry = Entry::new(name, Kind::File, 0o644);
        entry.size = content.len() as u64;
        archive.entry(&entry, &mut &content[..]).unwrap();
    }
    archive.finish().unwrap();
}

fn open(reference: &str) -> Result<Image, Error> {
    let reference: Reference = reference.parse().unwrap();
    Image::open(&reference, &Access::default(), &Limits::default())
}

struct Tried {
    dir: tempfile::TempDir,
    programs: Programs,
    original: Reference,
}

impl Tried {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("saved.tar");
        saved(&archive);
        Self {
            programs: programs(dir.path()),
            original: format!("docker-archive:{}", archive.display())
                .parse()
                .unwrap(),
            dir,
        }
    }

    fn wrap(&self, to: &str) -> Result<Wrapped, Error> {
        let image = open(&self.original.to_string())?;
        let to: Reference = to.parse().unwrap();
        // A name that does not tell where the test was.
        let named: Reference = "docker-archive:saved.tar".parse().unwrap();
        wrap(
            &image,
            &named,
            &self.programs,
            &to.below(self.dir.path()),
            &Access::default(),
        )
    }

    fn at(&self, scheme: &str, name: &str) -> String {
        format!("{scheme}:{}", self.dir.path().join(name).display())
    }
}

#[test]
fn a_wrapped_image_keeps_what_is_not_ours() {
    let tried = Tried::new();
    let wrapped = tried.wrap("oci:out:v1").unwrap();
    assert!(wrapped.dynamic.is_empty() && wrapped.original.is_none());
    let image = open(&format!("{}:v1", tried.at("oci", "out"))).unwrap();
    assert_eq!(image.manifest_digest, Some(wrapped.digest));
    let config: Value = serde_json::from_slice(&image.config_bytes).unwrap();
    let run = &config["config"];
    assert_eq!(run["Entrypoint"], json!(wrap::ENTRYPOINT));
    assert_eq!((&run["Cmd"], &run["User"]), (&json!(["cmd"]), &json!("")));
    assert_eq!(run["Volumes"], json!({"/data": {}, "/.ums/state": {}}));
    assert_eq!(run["Healthcheck"], json!({"Test": ["CMD", "x"]}));
    assert_eq!(
        (&run["StopSignal"], &run["Labels"]["a"]),
        (&json!("SIGQUIT"), &json!("b"))
    );
    assert_eq!(
        (&config["unknown"], &config["created"]),
        (&json!(1), &json!("2024-01-01T00:00:00Z"))
    );
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
    assert_eq!(image.layers.len(), 2);
}

#[test]
fn what_is_remembered_is_in_the_layer() {
    if !rustix_is_root() {
        return;
    }
    let tried = Tried::new();
    for to in ["oci:out", "docker-archive:out.tar:web:wrapped"] {
        tried.wrap(to).unwrap();
        let reference: Reference = to.parse().unwrap();
        let image = open(&reference.below(tried.dir.path()).to_string()).unwrap();
        let rootfs = tempfile::tempdir_in(tried.dir.path()).unwrap();
        image
            .unpack(rootfs.path(), Limits::default(), &mut |_| ())
            .unwrap();
        let at = |path: &str| rootfs.path().join(path);
        let json = fs::read(at(".ums/wrap.json")).unwrap();
        let memory: Wrap = serde_json::from_slice(&json).unwrap();
        memory.check().unwrap();
        assert_eq!(memory.command(&[]).unwrap(), ["/entry", "cmd"]);
        assert_eq!(
            (&*memory.user, &*memory.cwd, &memory.env[..]),
            ("www", "/srv", &["A=1".to_owned()][..])
        );
        let port = |port, transport| Exposed { transport, port };
        assert_eq!(
            memory.ports,
            [port(53, Transport::Udp), port(80, Transport::Tcp)]
        );
        assert_eq!(memory.volumes, ["/data"]);
        assert_eq!(fs::read(at("file")).unwrap(), b"hello");
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(".ums/bin/ums-agent"), mode(".ums/state")),
            (0o755, 0o700)
        );
        assert_eq!(fs::read(at(".ums/bundle/bin/runc")).unwrap(), program());
    }
}

fn rustix_is_root() -> bool {
    let own = fs::metadata("/proc/self").unwrap();
    std::os::unix::fs::MetadataExt::uid(&own) == 0
}

#[test]
fn the_same_makes_the_same() {
    let digest = || Tried::new().wrap("oci:out").unwrap().digest;
    assert_eq!(digest(), digest());
    let tried = Tried::new();
    let (one, two) = (
        tried.wrap("oci:one:a").unwrap(),
        tried.wrap("oci:two:b").unwrap(),
    );
    assert_eq!(one.digest, two.digest);
}

#[test]
fn wrapping_twice_is_refused() {
    let tried = Tried::new();
    tried.wrap("oci:out:v1").unwrap();
    let image = open(&tried.at("oci", "out")).unwrap();
    let to: Reference = "oci:never".parse().unwrap();
    let refused = wrap(
        &image,
        &tried.original,
        &tried.programs,
        &to,
        &Access::default(),
    );
    assert!(refused.unwrap_err().to_string().contains("wrapped already"));
    let there = tried.wrap("docker-archive:saved.tar");
    assert!(there.unwrap_err().to_string().contains("is there already"));
}

#[test]
fn damage_is_told_and_nothing_is_left_of_it() {
    let tried = Tried::new();
    tried.wrap("oci:out").unwrap();
    let image = open(&tried.at("oci", "out")).unwrap();
    let layer = &image.layers[0].descriptor.digest;
    let blob = tried.dir.path().join("out/blobs/sha256").join(layer.hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let rootfs = tempfile::tempdir().unwrap();
    let error = image
        .unpack(rootfs.path(), Limits::default(), &mut |_| ())
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}
