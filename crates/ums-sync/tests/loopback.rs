//! A stream over mutual TLS on a real socket.

mod common;

use std::sync::{Arc, Mutex};

use common::{IDLE, Memory, chain, limits, migration, random, settings};
use tokio::net::TcpListener;
use ums_core::id::SystemName;
use ums_sync::Meter;
use ums_sync::frame::PAGE_BYTES;
use ums_sync::receive;
use ums_sync::send::{SendError, Sender};
use ums_tls::ca::{Authority, SYSTEM_VALIDITY};
use ums_tls::{ALPN_DATA, Identity};

fn member(ca: &Authority, name: &SystemName) -> Identity {
    let issued = ca.issue(name, &[], SYSTEM_VALIDITY).unwrap();
    Identity {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    }
}

async fn run(sink: Memory, pages: usize) -> (Result<(), SendError>, Result<(), String>) {
    let (ca, _) = Authority::new("test").unwrap();
    let names: [SystemName; 2] = ["alpha", "beta"].map(|name| name.parse().unwrap());
    let [alpha, beta] = [member(&ca, &names[0]), member(&ca, &names[1])];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ums_tls::server_config(&beta, &[ALPN_DATA]).unwrap();
    let source = names[0].clone();
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let (stream, peer) = ums_tls::accept(tcp, config, IDLE).await.unwrap();
        assert_eq!(peer.system, source);
        let pending = receive::accept(stream, IDLE).await.unwrap();
        let received = pending.welcome(limits(), Meter::default(), sink).await;
        received.map(drop).map_err(|error| chain(&error))
    });
    let config = ums_tls::client_config(&alpha, &[ALPN_DATA]).unwrap();
    let stream = ums_tls::connect(address, &names[1], config, IDLE)
        .await
        .unwrap();
    let sender = Sender::open(stream, migration(), [9; 32], settings())
        .await
        .unwrap();
    let mut writer = sender.pages();
    let written = tokio::task::spawn_blocking(move || {
        let data = random(5, 64 * PAGE_BYTES);
        (0..pages as u64 / 64)
            .try_for_each(|at| writer.write(1, at * (64 * PAGE_BYTES) as u64, 0, &data))
    });
    let sent = match written.await.unwrap() {
        Ok(()) => sender.finish().await.map(drop),
        Err(error) => Err(error),
    };
    (sent, server.await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_arrive_over_mutual_tls() {
    let sink = Memory::default();
    let (sent, received) = run(sink.clone(), 4096).await;
    sent.unwrap();
    received.unwrap();
    let got = sink.got();
    assert!(got.finished);
    assert_eq!(got.pages.len(), 4096);
}

/// Over TCP the connection's reset must not overtake the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_destinations_reason_arrives_before_the_reset() {
    for _ in 0..5 {
        let got = Arc::new(Mutex::default());
        let limit = Some(1000 * PAGE_BYTES as u64);
        let sink = Memory {
            fail_at_page: limit,
            got,
            ..Memory::default()
        };
        let (sent, received) = run(sink, 1 << 18).await;
        let error = sent.unwrap_err();
        assert!(
            chain(&error).contains("3 MiB are left"),
            "{}",
            chain(&error)
        );
        assert!(received.unwrap_err().contains("3 MiB are left"));
    }
}
