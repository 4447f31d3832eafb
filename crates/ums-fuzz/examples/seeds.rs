//! Writes the seeds of the corpora, from messages as the programs make them.
//!
//! `cargo run -p ums-fuzz --example seeds -- fuzz/corpus`: to be run again when what is sent
//! changes. Entries that the fuzzers found stay beside them.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use ums_api::problem::ProblemKind;
use ums_checkpoint::store::{Index, StoredExtent, index};
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::id::{MigrationId, SystemName};
use ums_core::saga::{self, Action, Event, Output, Request};
use ums_core::specification::{PublishedPort, Specification, Transport, Volume};
use ums_core::step::Step;
use ums_core::technique::{Approach, Technique};
use ums_sync::files::{Always, Tree, first_pass, second_pass};
use ums_sync::frame::{
    Entry, Frame, FrameType, HEADER_LEN, Header, Kind, RelativePath, RootName, Xattr,
};
use ums_sync::send::{Sender, Settings};
use ums_tls::ca::Authority;

type Done = Result<(), Box<dyn Error>>;

struct Corpora(PathBuf);

impl Corpora {
    fn put(&self, targets: &[&str], name: &str, bytes: &[u8]) -> Done {
        for target in targets {
            let directory = self.0.join(target);
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(name), bytes)?;
        }
        Ok(())
    }

    fn put_json(&self, targets: &[&str], name: &str, value: &impl serde::Serialize) -> Done {
        self.put(targets, name, &serde_json::to_vec(value)?)
    }
}

fn main() -> Done {
    let place = std::env::args_os().nth(1).ok_or("say where: fuzz/corpus")?;
    let corpora = Corpora(place.into());
    streams(&corpora)?;
    escapes(&corpora)?;
    criu(&corpora)?;
    keeper(&corpora)?;
    journal(&corpora)?;
    messages(&corpora)?;
    settings(&corpora)?;
    identities(&corpora)
}

const STREAMS: [&str; 4] = ["frames", "stream", "tree", "pages"];

/// Streams as a source sends them.
fn streams(corpora: &Corpora) -> Done {
    let tree = tempfile::tempdir()?;
    let upper = tree.path().join("upper");
    fs::create_dir_all(upper.join("etc/deep"))?;
    fs::create_dir_all(tree.path().join("data"))?;
    fs::write(upper.join("etc/motd"), "hello\n".repeat(100))?;
    fs::write(upper.join("etc/deep/empty"), "")?;
    fs::hard_link(upper.join("etc/motd"), upper.join("etc/other"))?;
    std::os::unix::fs::symlink("/etc/motd", upper.join("link"))?;
    nix::unistd::mkfifo(&upper.join("pipe"), nix::sys::stat::Mode::S_IRWXU)?;
    fs::write(tree.path().join("data/store"), [7; 3000])?;
    let roots = vec![
        (RootName::Upper, upper.clone()),
        (RootName::Volume("data".parse()?), tree.path().join("data")),
    ];
    let tree = Tree { roots };
    corpora.put(
        &STREAMS,
        "files",
        &recorded(move |sender| {
            let mut writer = sender.files();
            let manifest = first_pass(&tree, &mut writer, &mut || Ok(Always::new()))?;
            fs::write(upper.join("etc/motd"), "changed")?;
            fs::remove_file(upper.join("link"))?;
            second_pass(&tree, &manifest, &Always::default(), &mut writer)?;
            Ok(())
        })?,
    )?;
    corpora.put(
        &STREAMS,
        "memory",
        &recorded(|sender| {
            sender.images().image("inventory.img", &[1; 700])?;
            let mut pages = sender.pages();
            let (process, lazy) = ((7 << 8) | 1, 2 | 4);
            pages.write(process, 0x1000, lazy, &[9; 4 * 4096])?;
            pages.write(process, 0x9000, 4, &[0; 2 * 4096])?;
            let mut noise: Vec<u8> = (0..4096_u32).map(|n| ((n * n) >> 3) as u8).collect();
            noise.extend([0; 4096]);
            pages.write((3 << 8) | 2, 0, lazy, &noise)?;
            pages.absent(process, 0x20000, 2, 1000)?;
            Ok(())
        })?,
    )
}

/// The frames that a sender makes, without opening and end.
fn recorded(
    write: impl FnOnce(&Sender) -> Result<(), Box<dyn Error + Send + Sync>> + Send + 'static,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let destination = tokio::spawn(record(theirs));
        let id = MigrationId(Default::default());
        let sender = Sender::open(ours, id, [7; 32], Settings::default()).await?;
        let written = tokio::task::spawn_blocking(move || write(&sender).map(|()| sender));
        written
            .await?
            .map_err(|error| error.to_string())?
            .finish()
            .await?;
        Ok(destination.await??)
    })
}

async fn record(mut stream: DuplexStream) -> Result<Vec<u8>, String> {
    let mut frames = Vec::new();
    let answer = |frame: &Frame<'_>| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).map(|()| bytes)
    };
    loop {
        let mut head = [0; HEADER_LEN];
        stream
            .read_exact(&mut head)
            .await
            .map_err(|error| error.to_string())?;
        let header = Header::decode(head).map_err(|error| error.to_string())?;
        let mut payload = vec![0; header.length];
        stream
            .read_exact(&mut payload)
            .await
            .map_err(|error| error.to_string())?;
        let frame = Frame::decode(header, &payload).map_err(|error| error.to_string())?;
        let reply = match frame {
            Frame::Hello(_) => answer(&Frame::Welcome { version: 1 }),
            Frame::End { digest, .. } => answer(&Frame::Delivered { digest }),
            _ => {
                frames.extend_from_slice(&head);
                frames.extend_from_slice(&payload);
                continue;
            }
        };
        let reply = reply.map_err(|error| error.to_string())?;
        stream
            .write_all(&reply)
            .await
            .map_err(|error| error.to_string())?;
        if header.frame == FrameType::End {
            return Ok(frames);
        }
    }
}

/// Streams that try to get out of the trees, which the target has laid links out of.
fn escapes(corpora: &Corpora) -> Done {
    let root = RootName::Upper;
    let entry = |path: &'static [u8], kind| -> Result<Entry<'static>, String> {
        let (mode, uid, gid, mtime_s, mtime_ns) = (0o4755, 1, 1, 5, 6);
        let xattrs = vec![Xattr {
            name: b"user.a",
            value: b"b",
        }];
        let (root, path) = (root.clone(), RelativePath::new(path)?);
        Ok(Entry {
            root,
            path,
            kind,
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
            xattrs,
        })
    };
    let out = RelativePath::new(b"relative/file")?;
    let whole = |entry| {
        [
            Frame::Entry(entry),
            Frame::FileData {
                offset: 0,
                zstd: false,
                bytes: b"out",
            },
            Frame::FileEnd { size: 3 },
        ]
    };
    let mut seeds: Vec<(&str, Vec<Frame<'_>>)> = Vec::new();
    for (name, path) in [
        ("through-absolute", &b"absolute/file"[..]),
        ("through-relative", b"relative/dir/new"),
        ("over-a-link", b"dir/link"),
    ] {
        seeds.push((name, whole(entry(path, Kind::File)?).into()));
    }
    seeds.push((
        "link-to-out",
        vec![Frame::Entry(entry(
            b"dir/hard",
            Kind::Link { target: out },
        )?)],
    ));
    seeds.push((
        "directory-over-link",
        vec![
            Frame::Entry(entry(b"absolute", Kind::Directory)?),
            Frame::Entry(entry(b"absolute/in", Kind::Fifo)?),
        ],
    ));
    let mut late = vec![Frame::Entry(entry(
        b"late",
        Kind::Symlink {
            target: b"../../outside",
        },
    )?)];
    late.extend(whole(entry(b"late/file", Kind::File)?));
    seeds.push(("own-link", late));
    let (path, root) = (RelativePath::new(b"relative/dir")?, root.clone());
    seeds.push(("remove-out", vec![Frame::Remove { root, path }]));
    seeds.push((
        "whiteout",
        vec![
            Frame::Entry(entry(
                b"gone",
                Kind::CharacterDevice { major: 0, minor: 0 },
            )?),
            Frame::Entry(entry(b"", Kind::Directory)?),
        ],
    ));
    for (name, frames) in seeds {
        let mut bytes = Vec::new();
        frames
            .iter()
            .try_for_each(|frame| frame.encode(&mut bytes))?;
        corpora.put(&["tree", "frames"], name, &bytes)?;
    }
    Ok(())
}

fn criu(corpora: &Corpora) -> Done {
    use ums_checkpoint::criu::rpc::{Notify, RequestType, Response, RestoreResponse, Version};
    let kinds = [
        ("notify", RequestType::Notify),
        ("restore", RequestType::Restore),
        ("version", RequestType::Version),
    ];
    for (name, kind) in kinds {
        let script = Some("post-restore".to_owned());
        let response = Response {
            kind: kind as i32,
            success: true,
            restore: Some(RestoreResponse { pid: 71 }),
            notify: Some(Notify {
                script,
                pid: Some(71),
            }),
            cr_errno: Some(2),
            cr_errmsg: Some("no such file".to_owned()),
            version: Some(Version {
                major: 4,
                minor: 2,
                sublevel: Some(1),
            }),
        };
        corpora.put(&["criu"], name, &response.encode_to_vec())?;
    }
    let info = json!({ "stdio": ["pipe:[1234]"], "owners": [1793, 770] });
    corpora.put_json(&["criu"], "info", &info)?;
    let extent = StoredExtent {
        address: 4096,
        pages: 3,
        offset: 0,
    };
    let index = index::encode(&Index::from([(7, vec![extent])]));
    corpora.put(&["criu"], "index", &index)?;

    // CRIU's page stream: OPEN2, ADD with two pages, FORCE_CLOSE (`page_server`'s table).
    let owner = (7_u64 << 8) | 1;
    for wide in [false, true] {
        let mut bytes = vec![u8::from(wide)];
        for (word, pages) in [(4_u32, 0_u64), (6 | 6 << 16, 2), (0x1024, 0)] {
            bytes.extend(word.to_ne_bytes());
            if wide {
                bytes.extend([0; 4]);
                bytes.extend(pages.to_ne_bytes());
            } else {
                bytes.extend((pages as u32).to_ne_bytes());
            }
            bytes.extend(0x1000_u64.to_ne_bytes());
            bytes.extend(owner.to_ne_bytes());
            bytes.resize(bytes.len() + 4096 * pages as usize, 9);
        }
        corpora.put(
            &["page_server"],
            if wide { "wide" } else { "narrow" },
            &bytes,
        )?;
    }
    Ok(())
}

fn keeper(corpora: &Corpora) -> Done {
    use ums_checkpoint::keeper::protocol::{
        self, KeeperConfig, Phase, Reply, RestoreRequest, Status,
    };
    let config = json!({
        "service": "redis", "socket": "/run/ums/services/redis/keeper.sock",
        "bundle_bin": "/usr/lib/ums/bundle/bin", "guard": ["ums-agent", "guard"],
        "cgroup": "/ums/a/redis", "memory_limit_bytes": 1 << 28, "lower": "/l", "upper": "/u",
        "work": "/w", "merged": "/m", "shm": "/s", "shm_bytes": 1 << 26,
        "devices": ["c 1:3 rwm"], "log": "/log",
        "mounts": [{ "mountpoint": "/data", "key": "volume-data", "source": "/v/data" }],
    });
    serde_json::from_value::<KeeperConfig>(config.clone())?;
    corpora.put_json(&["keeper"], "config", &config)?;
    let requests = [
        (
            "start",
            protocol::Request::Start {
                bundle: "/b".into(),
            },
        ),
        (
            "dump",
            protocol::Request::Dump(protocol::DumpRequest {
                connections: protocol::Connections::Carry,
                freeze_ms: protocol::FREEZE_MS,
                memory: protocol::MemoryBy::Agent,
            }),
        ),
        (
            "restore",
            protocol::Request::Restore(RestoreRequest {
                lazy_bytes: 1 << 30,
                lazy: true,
                connections: protocol::Connections::Carry,
            }),
        ),
    ];
    for (name, request) in requests {
        corpora.put_json(&["keeper"], name, &request)?;
    }
    let status = Status {
        protocol: protocol::PROTOCOL,
        phase: Phase::Dead { code: 137 },
        keeper_pid: 70,
        netns_fd: 5,
        init_pid: Some(71),
        pages_missing: 3,
        depends_on_source: false,
        at_risk_us: None,
        pages_lost: None,
        frozen_at_ns: Some(1),
        dumped_at_ns: Some(2),
        resumed_at_ns: None,
        restore_us: Some(9),
        spans: Vec::new(),
        lost: vec![],
        placed: false,
    };
    corpora.put_json(&["keeper"], "done", &Reply::Done(status.clone()))?;
    let reason = "CRIU could not dump".to_owned();
    corpora.put_json(&["keeper"], "failed", &Reply::Failed { reason, status })
}

/// Journals as the saga writes them: one that completes, one that is given up, one that arrives.
fn journal(corpora: &Corpora) -> Done {
    for (name, give_up) in [
        ("completed", None),
        ("abandoned", Some(Step::Checkpoint)),
        ("under-way", Some(Step::DeleteSource)),
    ] {
        let mut events = vec![Event::Requested(request()?)];
        let mut saga = saga::next(None, &events[0])?;
        let (mut running, mut at_us) = (None, 0);
        loop {
            at_us += 1000;
            let event = match (saga.what_next(), running.take()) {
                (_, Some(step)) => Event::StepDone {
                    step,
                    at_us,
                    output: output(step),
                },
                (Action::Run(step), None) if give_up == Some(step) && name == "abandoned" => {
                    let reason = "asked to".to_owned();
                    Event::Abandoned { at_us, reason }
                }
                (Action::Run(step), None) if give_up == Some(step) => {
                    events.push(Event::StepStarted { step, at_us });
                    break;
                }
                (Action::Run(Step::Commit), None) => {
                    running = Some(Step::Commit);
                    continue;
                }
                (Action::Run(step), None) => {
                    running = Some(step);
                    Event::StepStarted { step, at_us }
                }
                (Action::Commit, None) => Event::Committed { at_us },
                (Action::Compensate(step), None) if saga.is_being_undone(step) => {
                    Event::CompensationDone {
                        step,
                        at_us,
                        frozen_since_us: None,
                    }
                }
                (Action::Compensate(step), None) => Event::CompensationStarted { step, at_us },
                (Action::Finish(_), None) => {
                    let report = Box::new(saga.report(at_us, None));
                    Event::Finished { report }
                }
                _ => break,
            };
            saga = saga::next(Some(saga), &event)?;
            events.push(event);
        }
        let lines: Vec<String> = events
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        corpora.put(&["journal"], name, lines.join("\n").as_bytes())?;
    }
    for (name, state) in [
        ("reserved", json!({ "state": "reserved" })),
        ("prepared", json!({ "state": "prepared", "digest": "d" })),
        ("running", json!({ "state": "running" })),
    ] {
        let incoming = json!({
            "state": state, "source": "a", "service": service()?, "asked_at_ms": 1,
            "ended_at_ms": null, "created": created(), "running_since": [5, "boot"],
            "cleaned": false, "reason": null,
        });
        corpora.put_json(&["journal"], name, &incoming)?;
    }
    Ok(())
}

fn created() -> ums_api::peer::CreateAnswer {
    ums_api::peer::CreateAnswer {
        data_port: 7444,
        permit: "7".repeat(64),
        image_needed: true,
        endpoints: vec![([10, 0, 0, 2], 80).into()],
        processing_us: 900,
        tunnel: Some(ums_api::agent::TunnelEnd {
            port: 7450,
            permit: "8".repeat(64),
        }),
    }
}

fn request() -> Result<Request, Box<dyn Error>> {
    Ok(Request {
        id: "0190f0f0-0000-7000-8000-000000000001".parse()?,
        service: "redis".parse()?,
        source: "a".parse()?,
        destination: "b".parse()?,
        approach: None,
        technique: Some(Technique::StopAndCopy),
        max_downtime_ms: Some(5000),
        accept_loss: false,
        engine: None,
        asked_at_ms: 1,
        asked_at_ns: 1,
        boot: "boot".to_owned(),
    })
}

fn output(step: Step) -> Output {
    match step {
        Step::DetermineApproach => Output::Planned {
            approach: Approach::OrchestratorLevel,
            technique: Technique::StopAndCopy,
            endpoint: Some(([10, 0, 0, 1], 80).into()),
            losses: Vec::new(),
            predicted: None,
        },
        Step::ConfirmContainer => Output::Created {
            endpoints: vec![([10, 0, 0, 2], 80).into()],
        },
        Step::ImageComplete => Output::Delivered {
            frozen_at_us: 8000,
            digest: "d".to_owned(),
            bytes: Default::default(),
            rounds: 0,
            spans: Vec::new(),
        },
        Step::Commit => Output::Running {
            downtime_us: Some(1500),
            freeze_us: Some(1000),
            spans: Vec::new(),
        },
        _ => Output::None,
    }
}

fn specification() -> Result<Specification, Box<dyn Error>> {
    Ok(Specification {
        name: "redis".parse()?,
        image: "0".repeat(64).try_into()?,
        command: vec!["/bin/redis".to_owned(), "--port=6379".to_owned()],
        env: vec!["HOME=/root".to_owned()],
        cwd: "/data".to_owned(),
        uid: 999,
        gid: 999,
        memory_limit_bytes: Some(1 << 28),
        volumes: vec![Volume {
            name: "data".parse()?,
            path: "/data".to_owned(),
        }],
        address: [10, 88, 0, 5].into(),
        prefix_len: 16,
        ports: vec![PublishedPort {
            transport: Transport::Tcp,
            system_port: 6379,
            service_port: 6379,
        }],
        mounts: Vec::new(),
        creation: None,
        engine: None,
        capabilities: vec!["CAP_NET_BIND_SERVICE".to_owned()],
        hostname: "redis".to_owned(),
    })
}

fn service() -> Result<ServiceFacts, Box<dyn Error>> {
    Ok(ServiceFacts {
        specification: specification()?,
        running: true,
        processes: 2,
        threads: 5,
        memory_bytes: 1 << 26,
        filesystem_bytes: 1 << 20,
        image_bytes: 1 << 27,
        connections: 3,
        obstacles: Vec::new(),
        losses: Vec::new(),
        migrating: None,
    })
}

fn node() -> NodeFacts {
    NodeFacts {
        architecture: "x86_64".to_owned(),
        cpu_features: ["fpu".to_owned(), "avx2".to_owned()].into(),
        kernel: "6.1.0-18-amd64".to_owned(),
        criu: Some((4, 2, 1)),
        eager_restore: None,
        proc_paths: ["/proc/kcore".to_owned()].into(),
        memory_available_bytes: 1 << 33,
        disk_available_bytes: 1 << 34,
        warnings: Vec::new(),
        outer: false,
        tracks_memory: false,
        engines: Vec::new(),
        images: Default::default(),
        limits: Default::default(),
        system: ums_core::facts::SystemFacts {
            services: ["web".to_owned()].into(),
            addresses: [[10, 88, 0, 9].into()].into(),
            service_network: ([10, 88, 0, 0].into(), 16),
            ports: [80].into(),
            udp_ports: [].into(),
            readdresses: true,
            carries: ums_core::facts::CARRIES,
        },
    }
}

fn messages(corpora: &Corpora) -> Done {
    use ums_api::{agent, client, peer, problem::Problem};
    let words = &["messages"];
    corpora.put_json(&["specification"], "specification", &specification()?)?;
    let reserve = peer::ReserveRequest {
        source: node(),
        service: service()?,
        approach: Some(ums_core::technique::Approach::OrchestratorLevel),
        technique: None,
    };
    corpora.put_json(&["specification", "messages"], "reserve", &reserve)?;
    corpora.put_json(words, "hello", &json!({
        "versions": [1], "system": "b", "program": "0.1.0", "you_may_send": true, "facts": node(),
    }))?;
    corpora.put_json(words, "created", &created())?;
    corpora.put_json(
        words,
        "commit",
        &peer::CommitAnswer {
            processing_us: 5,
            running_for_us: 7,
        },
    )?;
    corpora.put_json(words, "decision", &json!({ "decision": "undecided" }))?;
    corpora.put_json(words, "restore", &json!({ "digest": "d" }))?;
    let refusal = ums_core::preflight::Refusal::peer_unknown("c", &["a", "b"]);
    corpora.put_json(
        words,
        "refused",
        &peer::ReserveAnswer {
            refusals: vec![refusal],
            lease_ms: 60_000,
        },
    )?;
    let system: SystemName = "b".parse()?;
    let open = agent::OpenRequest {
        service: "redis".parse()?,
        endpoint: agent::DataEndpoint {
            address: ([10, 0, 0, 2], 7444).into(),
            system: system.clone(),
            permit: "7".repeat(64),
        },
        send_image: true,
        technique: Technique::StopAndCopy,
        tunnel: Some(agent::DataEndpoint {
            address: ([10, 0, 0, 2], 7450).into(),
            system,
            permit: "8".repeat(64),
        }),
    };
    corpora.put_json(words, "open", &open)?;
    corpora.put_json(
        words,
        "run",
        &json!({
            "name": "redis", "rootfs": "/srv/redis", "command": ["/bin/redis"],
            "ports": [{ "transport": "tcp", "system_port": 1, "service_port": 2 }],
        }),
    )?;
    corpora.put_json(words, "migrate", &json!({
        "service": "redis", "destination": "b", "technique": "stop-and-copy", "max_downtime_ms": 5,
    }))?;
    let events = [Event::Requested(request()?)];
    let saga = saga::fold(&events)?.ok_or("one event")?;
    let mut report = saga.report(5, None);
    report.downtime_ms = Some(0.125);
    let view = client::MigrationView {
        report,
        progress: client::Progress::default(),
        refusals: Vec::new(),
        asked_at_ms: 1,
        resolvable: false,
    };
    corpora.put_json(words, "view", &view)?;
    corpora.put_json(
        words,
        "problem",
        &Problem::refused(403, ProblemKind::PeerDenied, "no", "ask"),
    )
}

fn settings(corpora: &Corpora) -> Done {
    corpora.put(
        &["config"],
        "full",
        br#"system = "a"
state_dir = "/srv/ums"
listen = "10.77.0.1:7000"
advertise = "10.77.0.1"
data_port = 30000
service_network = "10.99.0.0/24"
bandwidth_limit = "800mbit"
lease = "30s"
log_format = "json"
[limits]
outgoing = 2
hold_seconds = 5
[peers.b]
address = "10.77.0.2:7443"
allow = ["send", "receive"]
"#,
    )?;
    corpora.put(
        &["config"],
        "peer",
        b"address = \"10.77.0.2:7443\"\nallow = [\"send\"]\n",
    )?;
    let frontman = &["frontman"];
    corpora.put(
        frontman,
        "lead",
        br#"{"lead":{"upstreams":{"80":"10.0.0.1:8080"}}}"#,
    )?;
    corpora.put(frontman, "retire", br#"{"retire":{"drain_seconds":5}}"#)?;
    let status = json!({
        "service": "redis", "owner": "0190f0f0-0000-7000-8000-000000000001", "pid": 70,
        "phase": "leading",
        "ports": [{ "system_port": 80, "listen": "10.0.0.1:40000", "upstream": "10.0.0.2:80" }],
        "limits": ums_frontman::control::Limits::default(),
        "counts": ums_frontman::control::Counts::default(), "started_at": 5, "ends_at": 9,
    });
    corpora.put_json(frontman, "answer", &json!({ "ok": status }))?;
    corpora.put_json(
        frontman,
        "record",
        &json!({ "socket": "/run/ums/frontman/redis.sock", "status": status }),
    )?;
    let proc = &["proc"];
    corpora.put(proc, "status", b"Name:\tsh\nState:\tS (sleeping)\nPid:\t70\nPPid:\t1\nTracerPid:\t0\nThreads:\t3\nNSpid:\t70\t1\n")?;
    corpora.put(
        proc,
        "maps",
        b"7f00-7f01 rw-s 00000000 fe:00 123        /srv/a b\\012c (deleted)\n",
    )?;
    corpora.put(
        proc,
        "fdinfo",
        b"pos:\t0\nflags:\t0100002\nmnt_id:\t17\nino:\t5\n",
    )?;
    corpora.put(
        proc,
        "mountinfo",
        b"124 99 0:39 / / rw,relatime - overlay overlay rw\n",
    )?;
    corpora.put(
        proc,
        "rollup",
        b"00400000-7fff rollup\nRss:  2000 kB\nAnonymous:  12 kB\n",
    )?;
    corpora.put(proc, "tcp", b"  sl  local rem st\n   1: 00:1 00:2 01 0\n")?;
    corpora.put(proc, "link", b"socket:[46773]")
}

fn identities(corpora: &Corpora) -> Done {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let target = &["certificates"];
    let (authority, kept) = Authority::new("seeds")?;
    // Valid for no time at all: these keys are known to everybody.
    let address = [192, 0, 2, 7].into();
    let issued = authority.issue(&"alpha".parse()?, &[address], Duration::ZERO)?;
    let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes())?;
    corpora.put(target, "der", &der)?;
    corpora.put(
        target,
        "system.pem",
        (issued.cert_pem + &issued.key_pem).as_bytes(),
    )?;
    corpora.put(target, "ca.pem", (kept.cert_pem + &kept.key_pem).as_bytes())?;
    corpora.put(target, "permit", "7".repeat(64).as_bytes())
}
