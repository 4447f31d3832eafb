//! Everything that a stranger or a wrong peer can ask of a Coordinator, and what it gets: real
//! Coordinators, real mutual TLS, requests written by hand.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use support::agent::{What, When};
use support::{PATIENCE, System, Two, identity, issue, specification, system};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use ums_api::client::{AbortRequest, MigrationView, Permission, paths as client_paths};
use ums_api::peer::{ALPN, BODY_BYTES_MAX, paths};
use ums_core::facts::ServiceFacts;
use ums_core::id::MigrationId;
use ums_core::report::Outcome;
use ums_tls::ca::Authority;
use ums_tls::{self, Connection, Identity};

/// What the source of a migration may ask of its destination.
const OPERATIONS: [&str; 7] = [
    "reserve", "renew", "create", "restore", "commit", "abort", "close",
];

/// The version that the requests are of, where a test is not about versions.
const VERSION: u32 = 2;

/// A limit that a test waits for, and that who isn't slow keeps on a busy machine.
const SHORT: Duration = Duration::from_secs(2);

/// A status, and the kind of the problem if the answer is one.
type Answer = (u16, String);

fn answer(status: u16, kind: &str) -> Answer {
    (status, kind.to_owned())
}

async fn connect(to: &System, name: &str, who: &Identity) -> Connection {
    let config = ums_tls::client_config(who, &[ALPN]).expect("an identity");
    let (address, name) = (to.link.address(), system(name));
    ums_tls::connect(address, &name, config, PATIENCE)
        .await
        .expect("let in")
}

fn head(method: &str, path: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: ums\r\ncontent-length: {length}\r\n\r\n")
}

/// One request on a connection that may serve more.
async fn ask_on<S>(stream: &mut S, method: &str, path: &str, body: &[u8]) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = head(method, path, body.len());
    stream.write_all(head.as_bytes()).await.expect("written");
    // A server that refuses a body answers before it has read all of it.
    let _ = stream.write_all(body).await;
    let (status, body) = response(stream).await;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = body["type"].as_str().or(body["state"].as_str());
    (status, kind.unwrap_or_default().to_owned())
}

async fn response(stream: &mut (impl AsyncRead + Unpin)) -> (u16, Vec<u8>) {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |text| text.parse().expect("a number"))];
        stream.read_exact(&mut body).await.expect("a whole answer");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().expect("a number"), body)
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("an answer in time")
}

async fn ask(to: &System, name: &str, who: &str, method: &str, path: &str, body: &[u8]) -> Answer {
    let mut stream = connect(to, name, &identity(who)).await;
    ask_on(&mut stream, method, path, body).await
}

/// Waits until the other end closes, having said nothing.
async fn closes(stream: &mut (impl AsyncRead + Unpin)) {
    let mut said = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    // Reset or ended: either is closed.
    let _ = end.expect("closed in time");
    assert_eq!(String::from_utf8_lossy(&said), "");
}

fn fresh() -> MigrationId {
    MigrationId(uuid::Uuid::new_v4())
}

/// A reservation that is as it should be.
async fn reservation(two: &Two) -> Value {
    let facts: Value = two.b.get("/v1/facts").await.expect("facts");
    let service = ServiceFacts {
        specification: specification("other"),
        running: true,
        processes: 1,
        threads: 1,
        memory_bytes: 1,
        filesystem_bytes: 1,
        image_bytes: 1,
        connections: 0,
        obstacles: Vec::new(),
        losses: Vec::new(),
        migrating: None,
    };
    json!({ "source": facts, "service": service })
}

async fn body_of(two: &Two, operation: &str) -> Vec<u8> {
    let body = match operation {
        "reserve" => reservation(two).await,
        "restore" => json!({ "digest": "d" }),
        _ => json!({}),
    };
    body.to_string().into_bytes()
}

/// Adds `c` to the peers of both systems.
fn with_c(
    allow: &[Permission],
) -> impl FnOnce(&mut ums_coordinator::Config, &mut ums_coordinator::Config) {
    let allow = allow.iter().copied().collect();
    move |a, b| {
        let address = "127.0.0.1:9".parse().expect("an address");
        let peer = ums_coordinator::PeerConfig { address, allow };
        a.peers.insert(system("c"), peer.clone());
        b.peers.insert(system("c"), peer);
    }
}

/// Both systems with a migration from `a` to `b` that stays where its container is created.
async fn under_way(allow_c: &[Permission]) -> (Two, MigrationId) {
    let two = Two::with(with_c(allow_c)).await;
    two.a.agent.fault("open", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    (two, id)
}

async fn aborted_by_its_source(two: &Two, id: MigrationId) {
    let request = AbortRequest::default();
    let (client, path) = (two.a.client(), client_paths::abort(id));
    let asked = client.post::<MigrationView>(&path, &request, PATIENCE);
    asked.await.expect("accepted");
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned);
    two.settled(&view, "aborted").await;
}

#[tokio::test]
async fn a_member_of_the_ca_that_is_no_peer_is_denied_everything() {
    let (two, id) = under_way(&[]).await;
    let nobody = issue_member("nobody");
    let denied = answer(403, "peer-denied");
    let mut stream = connect(&two.b, "b", &nobody).await;
    for operation in OPERATIONS {
        let body = body_of(&two, operation).await;
        for id in [id, fresh()] {
            let path = paths::operation(VERSION, id, operation);
            let said = ask_on(&mut stream, "POST", &path, &body).await;
            assert_eq!(said, denied, "{operation}");
        }
    }
    for path in [
        paths::HELLO.to_owned(),
        paths::migration(VERSION, id),
        paths::decision(VERSION, id),
    ] {
        assert_eq!(
            ask_on(&mut stream, "GET", &path, b"").await,
            denied,
            "{path}"
        );
    }
    let mut source = connect(&two.a, "a", &nobody).await;
    let path = paths::decision(VERSION, id);
    assert_eq!(ask_on(&mut source, "GET", &path, b"").await, denied);
    aborted_by_its_source(&two, id).await;
}

/// A certificate of the same CA as the systems'.
fn issue_member(name: &str) -> Identity {
    issue(support::authority(), name)
}

#[tokio::test]
async fn a_peer_that_is_not_the_source_can_do_nothing_to_a_migration() {
    let (two, id) = under_way(&[Permission::Send, Permission::Receive]).await;
    let mut stream = connect(&two.b, "b", &identity("c")).await;
    for operation in OPERATIONS {
        let body = body_of(&two, operation).await;
        let said = ask_on(
            &mut stream,
            "POST",
            &paths::operation(VERSION, id, operation),
            &body,
        )
        .await;
        assert_eq!(said, answer(409, "aborted"), "{operation}");
    }
    let said = ask_on(&mut stream, "GET", &paths::migration(VERSION, id), b"").await;
    assert_eq!(said, answer(404, "migration-unknown"));
    // Nothing has come of it, and the source still may.
    let said = ask(&two.b, "b", "a", "GET", &paths::migration(VERSION, id), b"").await;
    assert_eq!(said, answer(200, "created"));
    aborted_by_its_source(&two, id).await;
}

#[tokio::test]
async fn only_the_destination_learns_the_decision() {
    let (two, id) = under_way(&[Permission::Send, Permission::Receive]).await;
    let path = paths::decision(VERSION, id);
    let said = ask(&two.a, "a", "c", "GET", &path, b"").await;
    assert_eq!(said, answer(404, "migration-unknown"));
    assert_eq!(ask(&two.a, "a", "b", "GET", &path, b"").await.0, 200);
    aborted_by_its_source(&two, id).await;
}

#[tokio::test]
async fn what_is_not_known_is_presumed_aborted_whatever_is_asked() {
    let two = Two::with(with_c(&[Permission::Send])).await;
    let mut stream = connect(&two.b, "b", &identity("c")).await;
    for operation in ["renew", "create", "restore", "commit", "close"] {
        let (path, body) = (
            paths::operation(VERSION, fresh(), operation),
            body_of(&two, operation).await,
        );
        let said = ask_on(&mut stream, "POST", &path, &body).await;
        assert_eq!(said, answer(409, "aborted"), "{operation}");
    }
    let view = paths::migration(VERSION, fresh());
    let unknown = answer(404, "migration-unknown");
    assert_eq!(ask_on(&mut stream, "GET", &view, b"").await, unknown);
    let malformed = "/peer/v1/migrations/everything/commit";
    assert_eq!(ask_on(&mut stream, "POST", malformed, b"{}").await, unknown);
}

#[tokio::test]
async fn a_peer_that_may_not_send_reserves_nothing_and_leaves_nothing() {
    let mut two = Two::with(with_c(&[Permission::Receive])).await;
    let (id, body) = (fresh(), body_of(&two, "reserve").await);
    let reserve = paths::operation(VERSION, id, "reserve");
    let said = ask(&two.b, "b", "c", "POST", &reserve, &body).await;
    assert_eq!(said, answer(403, "peer-denied"));
    // Nothing of it is here, and nothing is written down: once it may send, the id is free.
    let abort = paths::operation(VERSION, id, "abort");
    assert_eq!(ask(&two.b, "b", "c", "POST", &abort, b"{}").await.0, 200);
    two.b.kill().await;
    let peer = two.b.config.peers.get_mut(&system("c")).expect("a peer");
    peer.allow.insert(Permission::Send);
    two.b.start().await;
    assert_eq!(ask(&two.b, "b", "c", "POST", &reserve, &body).await.0, 200);
    // An abort of one who may is remembered instead.
    let (id, body) = (fresh(), body_of(&two, "reserve").await);
    let abort = paths::operation(VERSION, id, "abort");
    assert_eq!(ask(&two.b, "b", "c", "POST", &abort, b"{}").await.0, 200);
    let reserve = paths::operation(VERSION, id, "reserve");
    let said = ask(&two.b, "b", "c", "POST", &reserve, &body).await;
    assert_eq!(said, answer(409, "aborted"));
}

#[tokio::test]
async fn a_peer_that_may_not_send_learns_no_facts() {
    let two = Two::with(with_c(&[Permission::Receive])).await;
    for (who, told) in [("c", false), ("a", true)] {
        let mut stream = connect(&two.b, "b", &identity(who)).await;
        let head = head("GET", paths::HELLO, 0);
        stream.write_all(head.as_bytes()).await.expect("written");
        let (status, body) = response(&mut stream).await;
        let hello: Value = serde_json::from_slice(&body).expect("an object");
        assert_eq!((status, hello["facts"].is_object()), (200, told), "{who}");
    }
}

#[tokio::test]
async fn the_number_of_reservations_is_bounded() {
    let two = Two::with(|_, b| b.limits.incoming_max = 1).await;
    let mut stream = connect(&two.b, "b", &identity("a")).await;
    let body = body_of(&two, "reserve").await;
    let path = paths::operation(VERSION, fresh(), "reserve");
    assert_eq!(ask_on(&mut stream, "POST", &path, &body).await.0, 200);
    let path = paths::operation(VERSION, fresh(), "reserve");
    let said = ask_on(&mut stream, "POST", &path, &body).await;
    assert_eq!(said, answer(429, "too-many-migrations"));
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let two = Two::new().await;
    let mut unknown_field = reservation(&two).await;
    unknown_field["hurry"] = json!(true);
    let mut unknown_inside = reservation(&two).await;
    unknown_inside["service"]["priority"] = json!(7);
    let mut unknown_deep = reservation(&two).await;
    unknown_deep["service"]["specification"]["privileged"] = json!(true);
    for (operation, body) in [
        ("reserve", unknown_field.to_string()),
        ("reserve", unknown_inside.to_string()),
        ("reserve", unknown_deep.to_string()),
        ("create", r#"{"force":true}"#.to_owned()),
        ("restore", r#"{"digest":"d","verify":false}"#.to_owned()),
        ("restore", "{}".to_owned()),
        ("commit", "commit".to_owned()),
        ("abort", String::new()),
        ("close", "[".repeat(10_000)),
    ] {
        let path = paths::operation(VERSION, fresh(), operation);
        let said = ask(&two.b, "b", "a", "POST", &path, body.as_bytes()).await;
        assert_eq!(said, answer(400, "request-malformed"), "{operation} {body}");
    }
    for path in ["/peer/v2/hello", "/", "/v1/services"] {
        let said = ask(&two.b, "b", "a", "GET", path, b"").await;
        assert_eq!(said, answer(404, "path-unknown"), "{path}");
    }
    let path = paths::operation(VERSION, fresh(), "steal");
    let said = ask(&two.b, "b", "a", "POST", &path, b"{}").await;
    assert_eq!(said, answer(404, "path-unknown"));
    let said = ask(
        &two.b,
        "b",
        "a",
        "DELETE",
        &paths::migration(VERSION, fresh()),
        b"",
    )
    .await;
    assert_eq!(said.0, 405);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let two = Two::new().await;
    let path = paths::operation(VERSION, fresh(), "create");
    let body = vec![b' '; BODY_BYTES_MAX + 1];
    let said = ask(&two.b, "b", "a", "POST", &path, &body).await;
    assert_eq!(said, answer(413, "body"));
    // The head: as one long path, and as many fields.
    let long = format!("/{}", "x".repeat(64 * 1024));
    let many = "y: z\r\n".repeat(10_000);
    for (path, fields) in [(long.as_str(), ""), (paths::HELLO, many.as_str())] {
        let mut stream = connect(&two.b, "b", &identity("a")).await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: ums\r\n{fields}\r\n");
        // It may be closed before all is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut said = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
        let _ = read.expect("closed in time");
        let said = String::from_utf8_lossy(&said);
        assert!(!said.starts_with("HTTP/1.1 2"), "{said}");
    }
    assert_eq!(ask(&two.b, "b", "a", "GET", paths::HELLO, b"").await.0, 200);
}

/// Connects to `b` with this configuration, asks, and says what comes of it.
async fn handshake(two: &Two, config: ClientConfig) -> Result<(), String> {
    let config = Arc::new(config);
    let connected = ums_tls::connect(two.b.link.address(), &system("b"), config, PATIENCE).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    // In TLS 1.3 a client learns of the refusal when it reads.
    let head = head("GET", paths::HELLO, 0);
    let written = stream.write_all(head.as_bytes()).await;
    written.map_err(|error| error.to_string())?;
    let mut first = [0];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await;
    let read = read.expect("an end in time");
    read.map(|_| ()).map_err(|error| error.to_string())
}

fn client(who: &Identity) -> ClientConfig {
    (*ums_tls::client_config(who, &[ALPN]).expect("an identity")).clone()
}

/// A client that shows nothing, of this version of TLS.
fn bare(version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(identity("a").ca_pem.as_bytes());
    roots.add(ca.expect("a certificate")).expect("a root");
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]);
    let config = config.expect("a version").with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

#[tokio::test]
async fn who_can_not_prove_who_it_is_is_not_let_in() {
    let two = Two::new().await;
    handshake(&two, client(&identity("a")))
        .await
        .expect("let in");
    let (others, _) = Authority::new("another").expect("a CA");
    // It trusts our CA, and shows a certificate of its own.
    let foreign = Identity {
        ca_pem: identity("a").ca_pem,
        ..issue(&others, "a")
    };
    let expired = support::authority().issue(&system("a"), &[], Duration::ZERO);
    let expired = expired.expect("a certificate");
    let expired = Identity {
        ca_pem: identity("a").ca_pem,
        cert_pem: expired.cert_pem,
        key_pem: expired.key_pem,
    };
    // Its validity ends at the second in which it was issued.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut other_protocol = client(&identity("a"));
    other_protocol.alpn_protocols = vec![b"ums-data/1".to_vec()];
    for (what, config) in [
        ("another CA", client(&foreign)),
        ("expired", client(&expired)),
        ("no certificate", bare(&rustls::version::TLS13)),
        ("TLS 1.2", bare(&rustls::version::TLS12)),
        ("another protocol", other_protocol),
    ] {
        let refused = handshake(&two, config).await;
        assert!(refused.is_err(), "{what} was let in");
    }
}

/// Both systems, `b` with short limits for who is slow.
async fn impatient() -> Two {
    Two::with(|_, b| {
        b.limits.arrival_timeout = SHORT;
        b.limits.idle_timeout = SHORT;
    })
    .await
}

#[tokio::test]
async fn who_is_slow_is_given_up() {
    let two = impatient().await;
    let direct = || TcpStream::connect(two.b.link.address());
    let silent = async {
        closes(&mut direct().await.expect("a connection")).await;
    };
    let half_a_handshake = async {
        let mut stream = direct().await.expect("a connection");
        let written = stream.write_all(&[0x16, 3, 1, 2, 0]).await;
        written.expect("written");
        closes(&mut stream).await;
    };
    let half_a_head = async {
        let mut stream = connect(&two.b, "b", &identity("a")).await;
        let written = stream.write_all(b"GET /peer/v1/hello HTTP/1.1\r\nhost:");
        written.await.expect("written");
        closes(&mut stream).await;
    };
    let half_a_body = async {
        let mut stream = connect(&two.b, "b", &identity("a")).await;
        let head = head("POST", &paths::operation(VERSION, fresh(), "create"), 2);
        stream.write_all(head.as_bytes()).await.expect("written");
        stream.write_all(b"{").await.expect("written");
        assert_eq!(response(&mut stream).await.0, 408);
    };
    tokio::join!(silent, half_a_handshake, half_a_head, half_a_body);
}

#[tokio::test]
async fn strangers_take_no_place_of_a_peer() {
    let two = impatient().await;
    let mut strangers = Vec::new();
    // More than may be unknown at once.
    for _ in 0..100 {
        let connected = TcpStream::connect(two.b.link.address()).await;
        strangers.push(connected.expect("a connection"));
    }
    let said = ask(&two.b, "b", "a", "GET", paths::HELLO, b"").await;
    assert_eq!(said.0, 200);
}

#[tokio::test]
async fn one_peer_takes_no_place_of_another() {
    let two = Two::with(with_c(&[Permission::Send])).await;
    let mut kept = Vec::new();
    for _ in 0..64 {
        let mut stream = connect(&two.b, "b", &identity("c")).await;
        assert_eq!(ask_on(&mut stream, "GET", paths::HELLO, b"").await.0, 200);
        kept.push(stream);
    }
    let mut surplus = connect(&two.b, "b", &identity("c")).await;
    closes(&mut surplus).await;
    assert_eq!(ask(&two.b, "b", "a", "GET", paths::HELLO, b"").await.0, 200);
    // A place is given back.
    drop(kept.pop());
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut stream = connect(&two.b, "b", &identity("c")).await;
        let head = head("GET", paths::HELLO, 0);
        let mut first = [0];
        if stream.write_all(head.as_bytes()).await.is_ok()
            && matches!(stream.read(&mut first).await, Ok(1))
        {
            break;
        }
        assert!(
            tokio::time::Instant::now() < until,
            "no place is given back"
        );
    }
}

#[tokio::test]
async fn the_clients_socket_is_for_root_and_the_owner() {
    let two = Two::new().await;
    let socket = two.a.config.run_dir.join("ums.sock");
    let mode = std::fs::metadata(&socket)
        .expect("it is there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED the_clients_socket_is_for_root_and_the_owner: needs root");
        return;
    }
    // Even where the modes were loosened.
    let open = || std::fs::Permissions::from_mode(0o777);
    for path in socket
        .ancestors()
        .take_while(|path| path.parent().is_some())
        .take(3)
    {
        std::fs::set_permissions(path, open()).expect("changed");
    }
    let said = tokio::task::spawn_blocking(move || as_nobody(&socket)).await;
    assert_eq!(said.expect("no panic"), "");
}

/// What a user that is nobody gets to hear; the ids are this thread's alone.
fn as_nobody(socket: &std::path::Path) -> String {
    use std::io::{Read, Write};
    let socket = socket.to_owned();
    let asking = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("open to all");
        let _ = stream.write_all(head("GET", "/v1/services", 0).as_bytes());
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    });
    asking.join().expect("no panic")
}

#[tokio::test]
async fn clients_requests_are_checked_too() {
    let two = Two::new().await;
    let socket = two.a.config.run_dir.join("ums.sock");
    let ask = async |method: &str, path: &str, body: &[u8]| {
        let mut stream = UnixStream::connect(&socket).await.expect("a connection");
        ask_on(&mut stream, method, path, body).await
    };
    let malformed = answer(400, "request-malformed");
    let unknown_field = br#"{"service":"redis","destination":"b","force":true}"#;
    assert_eq!(
        ask("POST", client_paths::MIGRATIONS, unknown_field).await,
        malformed
    );
    let bad_name = br#"{"service":"../redis","destination":"b"}"#;
    assert_eq!(
        ask("POST", client_paths::MIGRATIONS, bad_name).await,
        malformed
    );
    let large = vec![b' '; ums_api::client::REQUEST_BYTES_MAX + 1];
    let said = ask("POST", client_paths::MIGRATIONS, &large).await;
    assert_eq!(said, answer(413, "body"));
    let said = ask("GET", "/v1/migrations?limit=many", b"").await;
    assert_eq!(said, answer(400, "query"));
    let said = ask("GET", paths::HELLO, b"").await;
    assert_eq!(said, answer(404, "path-unknown"));
}

/// What a version has no word for is no part of it: nothing is passed over.
#[tokio::test]
async fn the_first_version_is_what_it_was() {
    let two = Two::new().await;
    let mut stream = connect(&two.b, "b", &identity("a")).await;
    let mut request = reservation(&two).await;
    request["technique"] = json!("post-copy");
    let body = request.to_string().into_bytes();
    let reserve = paths::operation(1, fresh(), "reserve");
    let said = ask_on(&mut stream, "POST", &reserve, &body).await;
    assert_eq!(said, answer(400, "request-malformed"));
    let close = paths::operation(1, fresh(), "close");
    let said = ask_on(&mut stream, "POST", &close, b"{\"downtime_us\":1}").await;
    assert_eq!(said, answer(400, "request-malformed"));
    for operation in ["losses", "spans", "pages"] {
        let path = paths::operation(1, fresh(), operation);
        let said = ask_on(&mut stream, "POST", &path, b"{}").await;
        assert_eq!(said, answer(404, "path-unknown"), "{operation}");
    }
    let later = paths::operation(3, fresh(), "renew");
    let said = ask_on(&mut stream, "POST", &later, b"{}").await;
    assert_eq!(said, answer(404, "path-unknown"));
}
