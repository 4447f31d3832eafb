//! Who is let in to the data path: the agent's own listener, over real mutual TLS.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ums_sync::frame::{Frame, FrameType, HELLO_LEN, Header, PAYLOAD_MAX};
use ums_sync::send::{SendError, Sender, Settings};
use ums_tls::ca::{Authority, SYSTEM_VALIDITY};
use ums_tls::{ALPN_DATA, Connection, Identity, TlsError};

use super::*;
use crate::migration::{Migration, Outgoing};
use crate::node::test::node;

const PERMIT: [u8; 32] = [7; 32];
const PATIENCE: Duration = Duration::from_secs(20);

/// What the permit's owner gets who comes too early: admitted, and then there is no container.
const ADMITTED: &str = "no service";
const BAD_PERMIT: &str = "the permit is not valid";
const OTHER_SYSTEM: &str = "expected from another system";
const NO_MIGRATION: &str = "no such migration is expected";

/// An agent that listens for data paths, as system `b`.
struct Listening {
    node: Arc<Node>,
    address: SocketAddr,
    ca: Authority,
}

impl Listening {
    async fn new() -> Self {
        let (ca, _) = Authority::new("test").expect("a CA");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let node = Arc::new(node(member(&ca, "b")));
        tokio::spawn(listen(Arc::clone(&node), listener));
        Self { node, address, ca }
    }

    /// A migration that is expected from this system, with this permit.
    fn expects(&self, from: &str, permit: [u8; 32]) -> MigrationId {
        let id = MigrationId(random_id());
        let incoming = Incoming::new("redis".parse().expect("a name"), system(from));
        incoming.view().permit = Some(blake3::hash(&permit));
        self.node
            .migrations
            .remember(id, Migration::Incoming(Arc::new(incoming)));
        id
    }

    async fn connect(&self, who: &Identity) -> Result<Connection, TlsError> {
        let config = ums_tls::client_config(who, &[ALPN_DATA]).expect("an identity");
        ums_tls::connect(self.address, &system("b"), config, PATIENCE).await
    }

    /// Opens a data path as a source does; says what it was refused with.
    async fn open(&self, who: &str, id: MigrationId, permit: [u8; 32]) -> String {
        let stream = self.connect(&member(&self.ca, who)).await.expect("let in");
        match Sender::open(stream, id, permit, Settings::default()).await {
            Err(SendError::Refused { reason }) => reason,
            Err(other) => panic!("{}", problem::chain(&other)),
            Ok(_) => panic!("there is nothing to send to"),
        }
    }
}

fn random_id() -> uuid::Uuid {
    let random = crate::permit::random().expect("random numbers");
    uuid::Uuid::from_slice(&random[..16]).expect("16 bytes")
}

fn system(name: &str) -> SystemName {
    name.parse().expect("a name")
}

fn member(ca: &Authority, name: &str) -> Identity {
    let issued = ca.issue(&system(name), &[], SYSTEM_VALIDITY);
    let issued = issued.expect("a certificate");
    Identity {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    }
}

fn says(said: &str, wanted: &str) {
    assert!(said.contains(wanted), "`{said}` is not about `{wanted}`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_good_once() {
    let there = Listening::new().await;
    let id = there.expects("a", PERMIT);
    says(&there.open("a", id, PERMIT).await, ADMITTED);
    says(&there.open("a", id, PERMIT).await, BAD_PERMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_good_for_one_migration_and_one_system() {
    let there = Listening::new().await;
    let (id, other) = (there.expects("a", PERMIT), there.expects("a", [8; 32]));
    says(&there.open("a", other, PERMIT).await, BAD_PERMIT);
    says(&there.open("a", id, [8; 32]).await, BAD_PERMIT);
    says(&there.open("a", id, [0; 32]).await, BAD_PERMIT);
    // The right permit, shown by a system that may have stolen it.
    says(&there.open("c", id, PERMIT).await, OTHER_SYSTEM);
    says(&there.open("b", id, PERMIT).await, OTHER_SYSTEM);
    // None of that has used it up.
    says(&there.open("a", id, PERMIT).await, ADMITTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_expected_is_refused() {
    let there = Listening::new().await;
    let unknown = MigrationId(random_id());
    says(&there.open("a", unknown, PERMIT).await, NO_MIGRATION);
    // One that leaves is not one that arrives.
    let outgoing = Outgoing::new("redis".parse().expect("a name"));
    there
        .node
        .migrations
        .remember(unknown, Migration::Outgoing(Arc::new(outgoing)));
    says(&there.open("a", unknown, PERMIT).await, NO_MIGRATION);
    // After a restart of the agent no permit is left.
    let id = there.expects("a", PERMIT);
    if let Ok(Migration::Incoming(incoming)) = there.node.migrations.get(id) {
        incoming.view().permit = None;
    }
    says(&there.open("a", id, PERMIT).await, BAD_PERMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_listened_to() {
    let there = Listening::new().await;
    let id = there.expects("a", PERMIT);
    let (others, _) = Authority::new("another").expect("a CA");
    let foreign = Identity {
        ca_pem: there.ca.cert_pem().to_owned(),
        ..member(&others, "a")
    };
    // In TLS 1.3 a client learns of the refusal when it reads.
    if let Ok(stream) = there.connect(&foreign).await {
        let opened = Sender::open(stream, id, PERMIT, Settings::default()).await;
        assert!(!matches!(opened, Err(SendError::Refused { .. }) | Ok(_)));
    }
    // Its permit is still good.
    says(&there.open("a", id, PERMIT).await, ADMITTED);
}

/// Waits until the agent closes, having said nothing.
async fn closes(mut stream: Connection) {
    let mut said = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    let _ = end.expect("closed in time");
    assert_eq!(said, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_an_opening_is_read_of_who_is_not_known() {
    let there = Listening::new().await;
    let id = there.expects("a", PERMIT);
    let who = member(&there.ca, "a");
    let header = |frame, length| {
        Header {
            frame,
            flags: 0,
            length,
        }
        .encode()
    };
    for head in [
        header(FrameType::Hello, PAYLOAD_MAX),
        header(FrameType::Hello, HELLO_LEN + 1),
        header(FrameType::Hello, HELLO_LEN - 1),
        header(FrameType::Image, PAYLOAD_MAX),
        [0xff; 6],
    ] {
        let mut stream = there.connect(&who).await.expect("let in");
        stream.write_all(&head).await.expect("written");
        let payload = vec![0; HELLO_LEN - 1];
        stream.write_all(&payload).await.expect("written");
        stream.flush().await.expect("written");
        closes(stream).await;
    }
    let mut welcome = Vec::new();
    let frame = Frame::Welcome { version: 1 };
    frame.encode(&mut welcome).expect("a frame");
    let mut stream = there.connect(&who).await.expect("let in");
    stream.write_all(&welcome).await.expect("written");
    closes(stream).await;
    says(&there.open("a", id, PERMIT).await, ADMITTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_to_say_what_for_is_given_up() {
    let there = Listening::new().await;
    let who = member(&there.ca, "a");
    let says_nothing = there.connect(&who).await.expect("let in");
    let mut says_half = there.connect(&who).await.expect("let in");
    says_half.write_all(&[1, 0, 52]).await.expect("written");
    says_half.flush().await.expect("written");
    let shakes_no_hand = TcpStream::connect(there.address).await;
    let mut shakes_no_hand = shakes_no_hand.expect("a connection");
    let silent = async {
        let end = tokio::time::timeout(PATIENCE, shakes_no_hand.read_u8()).await;
        assert!(end.expect("closed in time").is_err());
    };
    tokio::join!(closes(says_nothing), closes(says_half), silent);
}
