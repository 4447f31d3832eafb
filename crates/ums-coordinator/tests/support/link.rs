//! The network before a Coordinator: one address that stays, and that can be cut off.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What leads to a Coordinator.
pub struct Link {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
}

impl Link {
    /// Leads nowhere at first.
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let target = watch::Sender::new(None);
        let targets = target.subscribe();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, targets.clone()));
            }
        });
        Self { address, target }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to this address from now on; connections to another one break.
    pub fn lead_to(&self, address: SocketAddr) {
        self.target.send_replace(Some(address));
    }

    /// Breaks all connections and accepts no more; says where it led to.
    pub fn cut(&self) -> Option<SocketAddr> {
        self.target.send_replace(None)
    }
}

async fn carry(mut stream: TcpStream, mut targets: watch::Receiver<Option<SocketAddr>>) {
    let Some(address) = *targets.borrow_and_update() else {
        return;
    };
    let Ok(mut onward) = TcpStream::connect(address).await else {
        return;
    };
    stream.set_nodelay(true).expect("a socket option");
    onward.set_nodelay(true).expect("a socket option");
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut stream, &mut onward) => {}
        _ = targets.changed() => {}
    }
}
