//! The source's pager: answers for the memory of the frozen processes.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use ums_checkpoint::carry;
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server::PAGE_LEN;
use ums_checkpoint::freezer::Freezer;
use ums_checkpoint::page_source::Stayed;
use ums_checkpoint::supply::{self, Answer, QUESTION_LEN};
use ums_core::id::{MigrationId, SystemName};
use ums_tls::{ALPN_PAGES, Connection};

use super::{Serve, is_leased};

/// How long a handshake may take, and the opening after it.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once: one that broke may not be known to be over when the next one comes.
const CONNECTIONS_MAX: usize = 8;
/// Pause between two looks at the lease.
const LEASE_LOOK: Duration = Duration::from_millis(20);
/// Length of the opening: migration and permit.
pub(super) const OPENING_LEN: usize = 16 + 32;
/// The answer to it.
pub(super) const WELCOME: u8 = 1;

struct Source {
    migration: MigrationId,
    destination: SystemName,
    permit: blake3::Hash,
    cgroup: String,
    lease: PathBuf,
    memory: OnceLock<Stayed>,
}

pub(super) async fn run(task: Serve) -> anyhow::Result<()> {
    let config = ums_tls::server_config(&task.identity.into(), &[ALPN_PAGES])?;
    let ports = task.ports.map_or(0..=0, |range| range.first..=range.last);
    let listener = listen(task.address, ports).await?;
    let permit = blake3::Hash::from_hex(&task.permit).context("the permit")?;
    let source = Arc::new(Source {
        migration: task.migration,
        destination: task.destination,
        permit: blake3::hash(permit.as_bytes()),
        cgroup: task.cgroup,
        lease: task.lease,
        memory: OnceLock::new(),
    });
    println!("{}", listener.local_addr()?.port());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await?;
            let (tcp, _) = listener.accept().await?;
            let (source, config) = (Arc::clone(&source), Arc::clone(&config));
            tokio::spawn(async move {
                if let Err(error) = source.attend(tcp, config).await {
                    eprintln!("ums-agent pager: {error:#}");
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        ended = accepting => ended,
        () = until_over(&source.lease) => Ok(()),
    }
}

async fn listen(
    address: std::net::IpAddr,
    ports: std::ops::RangeInclusive<u16>,
) -> std::io::Result<TcpListener> {
    let mut last = std::io::ErrorKind::AddrInUse.into();
    for port in ports {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn until_over(lease: &std::path::Path) {
    while is_leased(lease) {
        tokio::time::sleep(LEASE_LOOK).await;
    }
}

impl Source {
    async fn attend(
        &self,
        tcp: TcpStream,
        config: Arc<tokio_rustls::rustls::ServerConfig>,
    ) -> anyhow::Result<()> {
        let (mut stream, peer) = ums_tls::accept(tcp, config, HANDSHAKE_PATIENCE).await?;
        if peer.system != self.destination {
            bail!("`{}` asks for pages of another's service", peer.system);
        }
        let mut opening = [0; OPENING_LEN];
        tokio::time::timeout(HANDSHAKE_PATIENCE, stream.read_exact(&mut opening)).await??;
        let (migration, permit) = opening.split_at(16);
        // Hashes compare in constant time.
        if migration != self.migration.0.as_bytes() || blake3::hash(permit) != self.permit {
            bail!("`{}` has no permit", peer.system);
        }
        stream.write_all(&[WELCOME]).await?;
        stream.flush().await?;
        self.answer(stream).await
    }

    async fn answer(&self, mut stream: Connection) -> anyhow::Result<()> {
        loop {
            let mut question = [0; QUESTION_LEN];
            if stream.read_exact(&mut question).await.is_err() {
                // It has all that it needs, or comes again.
                return Ok(());
            }
            let wanted = supply::asked(&question)?;
            let mut pages = vec![0; wanted.pages as usize * PAGE_LEN];
            let read = tokio::task::block_in_place(|| {
                self.read(wanted.process, wanted.address, &mut pages)
            });
            if let Err(error) = read {
                let reason = format!("the source can't read the service's memory: {error:#}");
                stream
                    .write_all(&supply::refusal(wanted.place, &reason))
                    .await?;
                stream.flush().await?;
                return Err(error);
            }
            let answer = Answer {
                place: wanted.place,
                count: wanted.pages,
                refused: false,
            };
            stream.write_all(&answer.encode()).await?;
            stream.write_all(&pages).await?;
            stream.flush().await?;
        }
    }

    /// Reads pages, of which it is certain afterwards that nobody could change them meanwhile.
    fn read(&self, process: u32, address: u64, pages: &mut [u8]) -> anyhow::Result<()> {
        let cgroup = Cgroup::at(&self.cgroup)?;
        let memory = match self.memory.get() {
            Some(memory) => memory,
            None => {
                let opened = Stayed::open(&carry::processes(&cgroup))?;
                self.memory.get_or_init(|| opened)
            }
        };
        memory.read(process, address, pages)?;
        if !Freezer::of(&cgroup)?.is_frozen()? || !is_leased(&self.lease) {
            return Err(anyhow!("it is not frozen for this migration any more"));
        }
        Ok(())
    }
}
