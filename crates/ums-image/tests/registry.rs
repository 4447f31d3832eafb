//! A real registry (CNCF distribution, Debian's `docker-registry`), and images made by skopeo.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use ums_image::digest::Digest;
use ums_image::limits::Limits;
use ums_image::registry::{Access, Login};
use ums_image::tar::{Entry, Kind, Writer};
use ums_image::wrap::{Programs, wrap};
use ums_image::{Error, Image, Reference};

const PATIENCE: Duration = Duration::from_secs(60);

/// The user `me` with the password `secret`, as `htpasswd -B` writes it.
const PASSWORDS: &str = "me:$2b$04$GW/RybeZDwxuzDFq0DksJuxye2tuxpA/Kgqb1jYaRrGCAdh3d6rwa\n";

struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// One that wants a password, or not.
    fn start(dir: &Path, password: Option<&Path>) -> Self {
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let storage = dir.join("registry");
        fs::create_dir_all(&storage).unwrap();
        let auth = password.map_or(String::new(), |file| {
            format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            )
        });
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n{auth}http:\n  addr: \
             127.0.0.1:{port}\n",
            storage.display()
        );
        let file = dir.join("registry.yml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let registry = Self {
            child: command.spawn().unwrap(),
            port,
        };
        let end = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    fn reference(&self, name: &str) -> Reference {
        format!("docker://127.0.0.1:{}/{name}", self.port)
            .parse()
            .unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether these programs are there; says by name why a test does not run.
fn has(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let Some(lacking) = programs.iter().find(|name| !found(name)) else {
        return true;
    };
    let line = format!("SKIPPED {test}: `{lacking}` is not installed: run `cargo xtask setup`\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("UMS_SKIP_LOG") {
        let log = fs::OpenOptions::new().create(true).append(true).open(path);
        log.unwrap().write_all(line.as_bytes()).unwrap();
    }
    false
}

fn layer(path: &str, content: &str) -> Vec<u8> {
    let own = fs::metadata("/proc/self").unwrap();
    let mut entry = Entry::new(path, Kind::File, 0o644);
    entry.uid = std::os::unix::fs::MetadataExt::uid(&own);
    entry.gid = std::os::unix::fs::MetadataExt::gid(&own);
    entry.size = content.len() as u64;
    let mut writer = Writer::new(Vec::new());
    writer.entry(&entry, &mut content.as_bytes()).unwrap();
    writer.finish().unwrap()
}

/// An archive as `docker save` writes it, of two layers.
fn saved(dir: &Path) -> PathBuf {
    let layers = [layer("low", "1"), layer("high", &"2".repeat(100_000))];
    let config = json!({
        "architecture": ums_image::document::Platform::here().architecture, "os": "linux",
        "config": {"Cmd": ["/bin/x"], "Labels": {"a": "b"}},
        "history": [{"created_by": "a"}, {"created_by": "b"}],
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layers[0]), Digest::of(&layers[1])]},
    });
    let manifest = json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["0.tar", "1.tar"]}]);
    let [low, high] = layers;
    let files = [
        ("c.json", config.to_string().into_bytes()),
        ("0.tar", low),
        ("1.tar", high),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    let path = dir.join("saved.tar");
    let mut writer = Writer::new(fs::File::create(&path).unwrap());
    for (name, content) in files {
        let mut entry = Entry::new(name, Kind::File, 0o644);
        entry.size = content.len() as u64;
        writer.entry(&entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn skopeo(arguments: &[&str]) -> String {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn unpacked(image: &Image) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    image
        .unpack(dir.path(), Limits::default(), &mut |bytes| last = bytes)
        .unwrap();
    assert_eq!(last, image.layer_bytes(), "all of it was told");
    assert_eq!(fs::read_to_string(dir.path().join("low")).unwrap(), "1");
    assert_eq!(
        fs::metadata(dir.path().join("high")).unwrap().len(),
        100_000
    );
    dir
}

fn open(reference: &Reference, access: &Access) -> Result<Image, Error> {
    Image::open(reference, access, &Limits::default())
}

#[test]
fn what_skopeo_writes_is_read() {
    if !has("what_skopeo_writes_is_read", &["skopeo", "docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = format!("docker-archive:{}", saved(dir.path()).display());
    let registry = Registry::start(dir.path(), None);
    let at = |scheme: &str, name: &str| format!("{scheme}:{}", dir.path().join(name).display());
    let in_registry = |name: &str| registry.reference(name).to_string();
    let copies: [(&str, String); 6] = [
        ("oci", at("oci", "layout") + ":v1"),
        ("oci-zstd", at("oci", "zstd")),
        ("archive", at("docker-archive", "again.tar") + ":x:2"),
        ("oci", in_registry("some/oci:v1")),
        ("v2s2", in_registry("some/docker:v1")),
        ("oci-zstd", in_registry("some/zstd:v1")),
    ];
    for (format, to) in copies {
        let options: &[&str] = match format {
            "oci" => &["--format", "oci"],
            "oci-zstd" => &["--format", "oci", "--dest-compress-format", "zstd"],
            "v2s2" => &["--format", "v2s2"],
            _ => &[],
        };
        let copy = [
            &["copy", "--quiet", "--dest-tls-verify=false"],
            options,
            &[&archive, &to],
        ];
        skopeo(&copy.concat());
        let image = open(&to.parse().unwrap(), &Access::default()).unwrap();
        unpacked(&image);
        assert_eq!(image.config.config.labels["a"], "b");
    }
}

#[test]
fn what_is_written_skopeo_reads() {
    if !has(
        "what_is_written_skopeo_reads",
        &["skopeo", "docker-registry"],
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = saved(dir.path());
    let registry = Registry::start(dir.path(), None);
    let reference: Reference = format!("docker-archive:{}", archive.display())
        .parse()
        .unwrap();
    fs::create_dir_all(dir.path().join("bundle")).unwrap();
    let mut program = b"\x7fELF\x02\x01".to_vec();
    program.resize(64, 0);
    fs::write(dir.path().join("program"), program).unwrap();
    let programs = Programs {
        agent: dir.path().join("program"),
        frontman: dir.path().join("program"),
        bundle: dir.path().join("bundle"),
    };
    let access = Access::default();
    let targets = [
        registry.reference("wrapped/x:v1").to_string(),
        format!("oci:{}:v1", dir.path().join("layout").display()),
        format!(
            "docker-archive:{}:x:v1",
            dir.path().join("out.tar").display()
        ),
    ];
    for (number, to) in targets.into_iter().enumerate() {
        let image = open(&reference, &access).unwrap();
        let made = wrap(&image, &reference, &programs, &to.parse().unwrap(), &access).unwrap();
        let copied = format!("oci:{}-copied-{number}", dir.path().join("to").display());
        let copy = ["copy", "--quiet", "--src-tls-verify=false", &to, &copied];
        skopeo(&copy);
        let inspected = skopeo(&["inspect", "--tls-verify=false", "--config", &to]);
        let config: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(config["config"]["Entrypoint"][1], "outer");
        let again = open(&to.parse().unwrap(), &access).unwrap();
        unpacked(&again);
        if again.manifest_digest.is_some() {
            assert_eq!(again.manifest_digest, Some(made.digest));
        }
        // Read back and wrapped again it would be in two coats.
        let never: Reference = "oci:never".parse().unwrap();
        assert!(wrap(&again, &reference, &programs, &never, &access).is_err());
    }
}

#[test]
fn who_is_not_logged_in_is_told_so() {
    let test = "who_is_not_logged_in_is_told_so";
    if !has(test, &["skopeo", "docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = format!("docker-archive:{}", saved(dir.path()).display());
    let file = dir.path().join("htpasswd");
    fs::write(&file, PASSWORDS).unwrap();
    let registry = Registry::start(dir.path(), Some(&file));
    let to = registry.reference("x:v1");
    let options = [
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        "--dest-creds",
        "me:secret",
    ];
    skopeo(&[&options[..], &[&archive, &to.to_string()]].concat());
    let access = |password: &str| Access {
        plain_http: false,
        login: Some(Login {
            username: "me".to_owned(),
            password: password.to_owned(),
        }),
    };
    unpacked(&open(&to, &access("secret")).unwrap());
    for refused in [Access::default(), access("wrong")] {
        let error = open(&to, &refused).err().expect("refused").to_string();
        assert!(error.contains("log"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
