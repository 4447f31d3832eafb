//! What is said over an end's control socket: one JSON object a line, each request answered by one
//! line. Every request is idempotent.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::fragment::PACKET_BYTES_MAX;

/// What the agent asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How things stand.
    Status {},
    /// Near end only: release what is held, in order, then pass packets both ways.
    Lead {},
    /// Near end only, and only before `lead`: write what is held into the device, then end. It is
    /// answered when that is done.
    GiveBack {},
    /// Both ends' time begins anew: connections from before the move still live. Far end only,
    /// since only its system knows.
    Renew {},
    /// End, and have the other end end too.
    Retire {},
}

/// What an end answers.
pub type Response = crate::control::Response<Status>;

/// Which of the two ends a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// At the source.
    Near,
    /// At the destination.
    Far,
}

/// What an end does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndMode {
    /// They are kept until there is a decision.
    Holding,
    /// They pass both ways.
    Leading,
    /// What was held is being written back into the device.
    GivingBack,
    /// The end is ending.
    Retiring,
}

/// How an end stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which end it is.
    pub role: Role,
    /// The service it stands for.
    pub service: String,
    /// The migration that wants it.
    pub migration: String,
    /// The system at the other end.
    pub peer: String,
    /// Far end: the UDP socket it listens on. Near end: the one it connects to.
    pub address: SocketAddr,
    /// Its process id.
    pub pid: u32,
    /// Its device inside the service's namespace.
    pub device: String,
    /// That device's MTU, bytes.
    pub mtu: u16,
    /// What it does with packets.
    pub phase: EndMode,
    /// Whether the two ends are connected now.
    pub connected: bool,
    /// The path's round-trip time as QUIC estimates it, microseconds, while they are connected.
    pub round_trip_micros: Option<u64>,
    /// Its bounds.
    pub limits: Limits,
    /// Far end: how long the near end lives after the last sign that it is needed, seconds; `None`
    /// until it has said so.
    #[serde(default)]
    pub peer_retires_after_seconds: Option<u64>,
    /// What it has done so far.
    pub counts: Counts,
    /// When its process became the end, seconds since the Unix epoch.
    pub started_at: u64,
    /// When it will retire by itself, seconds since the Unix epoch.
    pub ends_at: u64,
}

/// Bounds on what clients can make an end keep, and on its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Packets held at one time.
    pub hold_packets: usize,
    /// Bytes of packets held at one time.
    pub hold_bytes: usize,
    /// How long the end lives after the last sign that it is needed: its start, `lead`, `renew`,
    /// a packet that passed, and for the far end also each time that a near end is let in; seconds.
    pub retire_after_seconds: u64,
}

impl Limits {
    /// Most packets that can be asked for: a packet held costs 32 bytes beside its own.
    pub const HOLD_PACKETS_MAX: usize = 1 << 24;

    /// Most bytes that can be asked for.
    pub const HOLD_BYTES_MAX: usize = 16 << 30;

    /// Longest life that can be asked for, seconds: adding it to a clock can't overflow.
    pub const RETIRE_AFTER_SECONDS_MAX: u64 = 366 * 24 * 3600;

    /// Checks them, and says which is out of range.
    pub fn check(&self) -> Result<(), String> {
        let within = |name, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is out of range: give {least} to {most}"))
            }
        };
        let bytes_min = PACKET_BYTES_MAX as u64;
        within(
            "hold_packets",
            self.hold_packets as u64,
            1,
            Self::HOLD_PACKETS_MAX as u64,
        )?;
        within(
            "hold_bytes",
            self.hold_bytes as u64,
            bytes_min,
            Self::HOLD_BYTES_MAX as u64,
        )?;
        within(
            "retire_after_seconds",
            self.retire_after_seconds,
            1,
            Self::RETIRE_AFTER_SECONDS_MAX,
        )
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold_packets: 65_536,
            hold_bytes: 64 << 20,
            retire_after_seconds: 3600,
        }
    }
}

/// What has become of the packets, since the start where it isn't said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets held now.
    pub held_packets: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Most packets held at one time.
    pub held_packets_peak: u64,
    /// Most bytes held at one time.
    pub held_bytes_peak: u64,
    /// Packets dropped because a bound was reached.
    pub dropped_over_bound: u64,
    /// Packets sent into the tunnel.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets from the tunnel written into the device.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets from the tunnel that the device did not take: it is full, or it is no IP packet.
    pub refused_by_device: u64,
    /// Packets from the tunnel of which a part was lost on the way, or that made no sense.
    pub incomplete: u64,
    /// Packets written back into the device by `give-back`.
    pub given_back: u64,
    /// Times that the two ends were connected again after the first.
    pub reconnects: u64,
    /// Times that an [standby](super::standby) has gone on for an end that died. The other counts begin
    /// anew with each.
    #[serde(default)]
    pub takeovers: u64,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        for (text, request) in [
            (r#"{"status":{}}"#, Request::Status {}),
            (r#"{"lead":{}}"#, Request::Lead {}),
            (r#"{"give-back":{}}"#, Request::GiveBack {}),
            (r#"{"renew":{}}"#, Request::Renew {}),
            (r#"{"retire":{}}"#, Request::Retire {}),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        for bad in [
            r#"{"hold":{}}"#,
            r#"{"lead":{"x":1}}"#,
            r#""lead""#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_out_of_range_are_named() {
        assert_eq!(Limits::default().check(), Ok(()));
        for (limits, name) in [
            (
                Limits {
                    hold_packets: 0,
                    ..Limits::default()
                },
                "hold_packets",
            ),
            (
                Limits {
                    hold_bytes: 1000,
                    ..Limits::default()
                },
                "hold_bytes",
            ),
            (
                Limits {
                    retire_after_seconds: u64::MAX,
                    ..Limits::default()
                },
                "retire_after",
            ),
        ] {
            assert!(limits.check().unwrap_err().contains(name));
        }
    }
}
