//! The state of an end, and what can be asked of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quinn::Connection;
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::control::{Counts, EndMode, Limits, Request, Response, Role, Status};
use super::device::Device;
use super::end::EndError;
use super::hold::Hold;
use super::launch::End;
use super::quic;
use super::standby::{self, Handles, Permits, Standing};
use crate::record::{self, Record};
use crate::server::{self, Answer};

/// Packets that wait between the device and the tunnel while they pass. Beyond it the device's own
/// queue fills, and the kernel drops there as on any link that is slower than its sender: a
/// longer queue would only be delay.
const PASSING_PACKETS_MAX: usize = 256;

/// Longest time in which a near end that is told to end sends what it has.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// It has sent all when nothing came for so long.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// The state of an end.
#[derive(Debug)]
pub(crate) struct Core {
    role: Role,
    pub(crate) end: End,
    address: SocketAddr,
    permits: Mutex<Permits>,
    takeovers: u64,
    young_deaths: u32,
    /// How long the other end lives unneeded, seconds; 0 while it hasn't said.
    peer_retires_after: AtomicU64,
    pub(super) line: standby::Line,
    pub(crate) device: Device,
    hold: Mutex<Hold>,
    /// The far end was told that it is still needed.
    pub(crate) renewed: Notify,
    /// Something was put into the hold.
    pub(crate) arrived: Notify,
    /// Something was taken out of it, or needn't wait any more.
    room: Notify,
    pub(crate) phase: watch::Sender<EndMode>,
    pub(crate) link: watch::Sender<Option<Connection>>,
    pub(crate) totals: Totals,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    started_at: u64,
    end: Instant,
    /// The same, by the wall clock, for people.
    ends_at: u64,
}

/// Counts that only grow.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sent_packets: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_packets: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) refused_by_device: AtomicU64,
    pub(crate) incomplete: AtomicU64,
    pub(crate) given_back: AtomicU64,
    pub(crate) reconnects: AtomicU64,
}

/// A request that doesn't fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this end is ending: start another one")]
    Ending,
    #[error("packets are led already: nothing can be given back")]
    Led,
    #[error("a far end passes packets from its start: ask the near end")]
    Far,
    #[error("only the far end's system knows which connections live: ask the far end")]
    Near,
}

impl Core {
    /// The state of an end that goes on where this standing is; nothing is read from the device yet.
    pub(crate) fn new(
        role: Role,
        end: End,
        address: SocketAddr,
        standing: Standing,
        handles: Handles,
    ) -> Result<Arc<Self>, EndError> {
        let shared = handles.try_clone().map_err(EndError::Descriptor)?;
        let device = Device::open(handles.device, handles.namespace);
        let device = device.map_err(EndError::Descriptor)?;
        Ok(Arc::new(Self {
            role,
            address,
            device,
            hold: Mutex::new(Hold::new(end.limits.hold_packets, end.limits.hold_bytes)),
            end,
            permits: Mutex::new(standing.permits),
            takeovers: standing.takeovers,
            young_deaths: standing.young_deaths,
            peer_retires_after: AtomicU64::new(0),
            line: standby::Line::new(role, shared),
            renewed: Notify::new(),
            arrived: Notify::new(),
            room: Notify::new(),
            phase: watch::Sender::new(standing.phase),
            link: watch::Sender::new(None),
            totals: Totals::default(),
            life: Mutex::new(Life::until(standing.ends_at_ms)),
        }))
    }

    /// Whether no end has died before this one.
    pub(super) fn is_first(&self) -> bool {
        self.takeovers == 0
    }

    /// The other end has said how long it lives unneeded.
    pub(crate) fn know_peer(&self, retires_after_seconds: u64) {
        self.peer_retires_after
            .store(retires_after_seconds, Relaxed);
    }

    /// Starts a standby.
    pub(crate) fn start_standby(&self) -> std::io::Result<Child> {
        self.line.raise(self.standing())
    }

    fn standing(&self) -> Standing {
        let permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        Standing {
            phase: *self.phase.borrow(),
            ends_at_ms: self.life().ends_at_ms(),
            permits: permits.clone(),
            takeovers: self.takeovers,
            young_deaths: self.young_deaths,
        }
    }

    /// What has changed the standby knows, too, when this returns.
    fn tell_standby(&self) {
        self.line.tell(&self.standing());
    }

    /// Looks at the permits, changes them, and lets the standby know.
    pub(crate) fn with_permits<T>(&self, change: impl FnOnce(&mut Permits) -> T) -> T {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut permits);
        drop(permits);
        self.tell_standby();
        done
    }

    /// Keeps a packet until it can go on.
    pub(crate) fn keep(&self, packet: Bytes) {
        self.hold().push(packet);
        self.arrived.notify_one();
    }

    /// Takes the oldest packets out.
    pub(crate) fn take(&self, most: usize) -> Vec<Bytes> {
        let taken = self.hold().take(most);
        self.room.notify_one();
        taken
    }

    /// Puts packets back that could not go on.
    pub(crate) fn put_back(&self, packets: impl DoubleEndedIterator<Item = Bytes>) {
        self.hold().put_back(packets);
    }

    /// Returns when another packet may be read from the device: at once while packets are held,
    /// and while they pass, when not too many wait.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            let passing = *self.phase.borrow() == EndMode::Leading && self.link.borrow().is_some();
            if !passing || self.hold().len() < PASSING_PACKETS_MAX {
                return;
            }
            freed.await;
        }
    }

    /// Uses this connection from now on.
    pub(crate) fn connect(&self, connection: Connection) {
        self.link.send_replace(Some(connection));
    }

    /// Stops using this connection, if it is in use.
    pub(crate) fn disconnect(&self, connection: &Connection) {
        self.link.send_if_modified(|link| {
            let same = link
                .as_ref()
                .is_some_and(|link| link.stable_id() == connection.stable_id());
            if same {
                *link = None;
            }
            same
        });
        self.room.notify_one();
    }

    /// Returns when this end is retiring.
    pub(crate) async fn retiring(&self) {
        let mut phases = self.phase.subscribe();
        let _ = phases.wait_for(|phase| *phase == EndMode::Retiring).await;
    }

    /// Begins the end's time anew.
    pub(crate) fn live_on(&self) {
        self.life().restart(self.end.limits.retire_after_seconds);
        self.note();
    }

    fn lead(&self) -> Result<(), Refusal> {
        match self.change(EndMode::Leading, |phase| phase == EndMode::Holding) {
            Ok(()) => {
                self.live_on();
                Ok(())
            }
            Err(EndMode::Leading) => Ok(()),
            Err(_) => Err(Refusal::Ending),
        }
    }

    fn renew(&self) -> Result<(), Refusal> {
        if self.role == Role::Near {
            return Err(Refusal::Near);
        }
        self.live_on();
        self.renewed.notify_one();
        Ok(())
    }

    async fn give_back(&self) -> Result<(), Refusal> {
        if self.role == Role::Far {
            return Err(Refusal::Far);
        }
        match self.change(EndMode::GivingBack, |phase| phase == EndMode::Holding) {
            Ok(()) | Err(EndMode::GivingBack) => {}
            Err(EndMode::Leading) => return Err(Refusal::Led),
            Err(_) => return Err(Refusal::Ending),
        }
        self.note();
        self.retiring().await;
        Ok(())
    }

    /// Ends it; what is held is dropped.
    pub(crate) fn retire(&self) {
        if self
            .change(EndMode::Retiring, |phase| phase != EndMode::Retiring)
            .is_ok()
        {
            tracing::info!("retiring");
            self.tell_standby();
            self.remove_files();
        }
    }

    /// Returns when what a near end has is on its way, and nothing comes after it: for who sends
    /// datagrams nobody would send them again. Content when that does not come about in time.
    async fn drain(&self) {
        let link = self.link.borrow().clone();
        let (Some(link), Role::Near) = (link, self.role) else {
            return;
        };
        let mut before = None;
        let drained = async {
            loop {
                let sent = self.totals.sent_packets.load(Relaxed);
                let leading = *self.phase.borrow() == EndMode::Leading;
                let empty = self.hold().is_empty() && quic::has_sent_all(&link);
                if !leading || (empty && before == Some(sent)) {
                    return;
                }
                before = empty.then_some(sent);
                sleep(DRAIN_LOOK).await;
            }
        };
        let _ = timeout(DRAIN_WITHIN, drained).await;
    }

    fn change(&self, to: EndMode, from: impl Fn(EndMode) -> bool) -> Result<(), EndMode> {
        let mut was = to;
        let changed = self.phase.send_if_modified(|phase| {
            was = *phase;
            let fits = from(was);
            if fits {
                *phase = to;
            }
            fits
        });
        self.room.notify_one();
        if changed { Ok(()) } else { Err(was) }
    }

    /// How it stands.
    pub(crate) fn status(&self) -> Status {
        let link = self.link.borrow().clone();
        let link = link.filter(|link| link.close_reason().is_none());
        let life = self.life();
        Status {
            role: self.role,
            service: self.end.service.clone(),
            migration: self.end.migration.clone(),
            peer: self.end.peer.to_string(),
            address: self.address,
            pid: std::process::id(),
            device: self.end.device.clone(),
            mtu: self.end.mtu,
            phase: *self.phase.borrow(),
            connected: link.is_some(),
            round_trip_micros: link
                .map(|link| link.rtt().as_micros().try_into().unwrap_or(u64::MAX)),
            limits: self.end.limits,
            peer_retires_after_seconds: match self.peer_retires_after.load(Relaxed) {
                0 => None,
                seconds => Some(seconds),
            },
            counts: self.counts(),
            started_at: life.started_at,
            ends_at: life.ends_at,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let hold = self.hold();
        let totals = &self.totals;
        let (packets, bytes) = hold.peak();
        Counts {
            held_packets: hold.len() as u64,
            held_bytes: hold.bytes() as u64,
            held_packets_peak: packets as u64,
            held_bytes_peak: bytes as u64,
            dropped_over_bound: hold.dropped(),
            sent_packets: totals.sent_packets.load(Relaxed),
            sent_bytes: totals.sent_bytes.load(Relaxed),
            received_packets: totals.received_packets.load(Relaxed),
            received_bytes: totals.received_bytes.load(Relaxed),
            refused_by_device: totals.refused_by_device.load(Relaxed),
            incomplete: totals.incomplete.load(Relaxed),
            given_back: totals.given_back.load(Relaxed),
            reconnects: totals.reconnects.load(Relaxed),
            takeovers: self.takeovers,
        }
    }

    /// Packets that have passed, either way.
    pub(super) fn passed(&self) -> u64 {
        self.totals.sent_packets.load(Relaxed) + self.totals.received_packets.load(Relaxed)
    }

    /// Logs the change and writes it down. Packets pass even when that fails.
    fn note(&self) {
        let status = self.status();
        tracing::debug!(phase = ?status.phase, ends_at = status.ends_at, "changed");
        self.tell_standby();
        if let Err(error) = self.write_record() {
            tracing::error!(%error, "cannot write the state file");
        }
    }

    pub(super) fn write_record(&self) -> std::io::Result<()> {
        let (socket, status) = (self.end.socket.clone(), self.status());
        record::write(&self.end.state, &Record { socket, status })
    }

    fn remove_files(&self) {
        for path in [&self.end.state, &self.end.socket] {
            if let Err(error) = record::remove(path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove");
            }
        }
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        // Nothing panics while it holds the lock.
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When its time is over, unless it begins anew.
    pub(super) fn end_time(&self) -> Instant {
        self.life().end
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer for Core {
    async fn answer(&self, line: &[u8]) -> Vec<u8> {
        let done = match serde_json::from_slice(line) {
            Ok(Request::Status {}) => Ok(()),
            Ok(Request::Lead {}) => self.lead(),
            Ok(Request::GiveBack {}) => self.give_back().await,
            Ok(Request::Renew {}) => self.renew(),
            Ok(Request::Retire {}) => {
                self.drain().await;
                self.retire();
                Ok(())
            }
            Err(error) => return server::line(&refusal(format!("not a request: {error}"))),
        };
        server::line(&match done {
            Ok(()) => Response::Ok(Box::new(self.status())),
            Err(refused) => refusal(refused.to_string()),
        })
    }

    fn refuse(reason: String) -> Vec<u8> {
        server::line(&refusal(reason))
    }
}

fn refusal(reason: String) -> Response {
    Response::Error(reason)
}

impl Life {
    fn until(ends_at_ms: u64) -> Self {
        let mut life = Self {
            started_at: now(),
            end: Instant::now(),
            ends_at: 0,
        };
        life.set(Duration::from_millis(
            ends_at_ms.saturating_sub(monotonic_ms()),
        ));
        life
    }

    fn restart(&mut self, seconds: u64) {
        self.set(Duration::from_secs(seconds));
    }

    fn set(&mut self, left: Duration) {
        self.end = Instant::now() + left;
        self.ends_at = now().saturating_add(left.as_secs());
    }

    /// When it ends by the clock that a standby can read.
    fn ends_at_ms(&self) -> u64 {
        let left = self.end.saturating_duration_since(Instant::now());
        monotonic_ms().saturating_add(left.as_millis() as u64)
    }
}

/// The clock that an end and its standby have in common; a wall clock may be set meanwhile.
fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl Standing {
    /// Where an end begins.
    pub(super) fn begin(role: Role, permits: Permits, limits: Limits) -> Self {
        Self {
            phase: match role {
                Role::Near => EndMode::Holding,
                Role::Far => EndMode::Leading,
            },
            ends_at_ms: monotonic_ms().saturating_add(limits.retire_after_seconds * 1000),
            permits,
            takeovers: 0,
            young_deaths: 0,
        }
    }
}
