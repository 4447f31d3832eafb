//! Sockets: their options are read from every one, and set where a restored one answers otherwise.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use ums_core::facts::LossKind;

use super::Lost;
use super::descriptor::{Place, Reach};
use super::option::{self, Form, How, Nature, SocketOption, Value};
use super::{raw, room, segment};

const SOL_SOCKET: i32 = 1;
const SO_TYPE: i32 = 3;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;
const IPPROTO_TCP: i32 = 6;
const TCP_INFO: i32 = 11;

/// Longest value of an option, bytes.
const VALUE_MAX: usize = 2048;

/// An option with its value: level, name, value.
type Entry = (i32, i32, Value);

/// The sockets of a service.
///
/// Thousands of connections differ in a few values if at all: each says only what is not as in the
/// first of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sockets {
    kinds: Vec<Vec<Entry>>,
    sockets: Vec<Socket>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Socket {
    place: Place,
    kind: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    other: Vec<Entry>,
    /// Of a TCP connection: what its unread data takes of the receive buffer, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unread: Option<u32>,
}

/// Collects sockets.
#[derive(Debug, Default)]
pub(super) struct Collector {
    sockets: Sockets,
    known: HashMap<Vec<(i32, i32)>, usize>,
}

impl Collector {
    /// Looks at one.
    pub(super) fn add(&mut self, socket: &OwnedFd, place: Place) -> io::Result<Nature> {
        let nature = nature(socket)?;
        let options = option::TABLE.iter().filter(|option| option.is_on(nature));
        // What a kernel or a kind of socket doesn't know it refuses to tell.
        let entries: Vec<Entry> = options
            .filter_map(|option| Some((option.level, option.name, read(option, socket).ok()?)))
            .collect();
        let names = entries.iter().map(|(level, name, _)| (*level, *name));
        let kinds = &mut self.sockets.kinds;
        let kind = *self.known.entry(names.collect()).or_insert_with(|| {
            kinds.push(entries.clone());
            kinds.len() - 1
        });
        let pairs = entries.iter().zip(&kinds[kind]);
        let other = pairs
            .filter(|(own, first)| own != first)
            .map(|(own, _)| own.clone())
            .collect();
        let unread = nature.is_tcp().then(|| room::unread(socket)).transpose()?;
        self.sockets.sockets.push(Socket {
            place,
            kind,
            other,
            unread,
        });
        Ok(nature)
    }

    /// All that were looked at.
    pub(super) fn finish(self) -> Sockets {
        self.sockets
    }
}

impl Sockets {
    /// Sets the options of restored sockets that are not as they were.
    pub(super) fn apply(&self, reach: &Reach) -> Vec<Lost> {
        let mut lost = Vec::new();
        for socket in &self.sockets {
            let place = socket.place;
            let mut tell = |text: String| {
                let detail = format!("the socket behind descriptor {}: {text}", place.fd);
                lost.push(Lost::new(LossKind::SocketOption, place.pid, detail));
            };
            match reach.get(place) {
                Ok(copy) => self.set(socket, &copy).into_iter().for_each(tell),
                Err(error) => tell(error.to_string()),
            }
        }
        lost
    }

    /// Sets those of one, and returns what did not succeed.
    fn set(&self, socket: &Socket, copy: &OwnedFd) -> Vec<String> {
        let first = self.kinds.get(socket.kind).into_iter().flatten();
        let own = |(level, name, value): &'_ Entry| {
            let same = |other: &&Entry| (other.0, other.1) == (*level, *name);
            socket
                .other
                .iter()
                .find(same)
                .map_or(value.clone(), |(_, _, own)| own.clone())
        };
        let known = first.filter_map(|entry| Some((option::find(entry.0, entry.1)?, own(entry))));
        let mut failed: Vec<String> = known
            .filter_map(|(option, value)| ensure(option, copy, &value).err())
            .collect();
        let made = socket.unread.map(|before| room::make(copy, before));
        if let Some(Err(error)) = made {
            failed.push(format!("there is less room for what it receives: {error}"));
        }
        if let Err(error) = whole_segments(copy) {
            failed.push(format!("it sends small segments: {error}"));
        }
        failed
    }
}

/// What a socket is.
pub(super) fn nature(socket: &OwnedFd) -> io::Result<Nature> {
    let get = |name| raw::get_int(socket, SOL_SOCKET, name);
    let mut nature = Nature {
        domain: get(SO_DOMAIN)?,
        kind: get(SO_TYPE)?,
        protocol: get(SO_PROTOCOL)?,
        state: 0,
    };
    if nature.is_tcp() {
        let mut info = [0];
        raw::get(socket, IPPROTO_TCP, TCP_INFO, &mut info)?;
        nature.state = info[0];
    }
    Ok(nature)
}

/// A connection sends as much at once as its peer takes.
fn whole_segments(socket: &OwnedFd) -> io::Result<()> {
    match nature(socket)? {
        nature if nature.is_tcp() && !nature.is_closed() && !nature.is_listening() => {
            segment::reckon(socket)
        }
        _ => Ok(()),
    }
}

fn read(option: &SocketOption, socket: &OwnedFd) -> io::Result<Value> {
    let (level, name) = (option.level, option.name);
    let int = || raw::get_int(socket, level, name);
    let mut buffer = [0; VALUE_MAX];
    let mut bytes = |max: usize| {
        let len = raw::get(socket, level, name, &mut buffer[..max])?;
        Ok::<_, io::Error>(buffer[..len].to_vec())
    };
    Ok(match option.form {
        Form::Int => Value::Int(int()?),
        Form::Bytes(max) => Value::Bytes(bytes(max)?),
        Form::Text => {
            let text = bytes(64)?;
            let end = text.iter().position(|byte| *byte == 0);
            let text = &text[..end.unwrap_or(text.len())];
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
        Form::Device => Value::Text(raw::device_name(socket, int()?)?),
        Form::DeviceBigEndian => Value::Text(raw::device_name(socket, i32::from_be(int()?))?),
    })
}

/// Sets an option if it is not as it was; the error says what it is now.
fn ensure(option: &SocketOption, socket: &OwnedFd, was: &Value) -> Result<(), String> {
    if read(option, socket).is_ok_and(|is| option.is_same(&is, was)) {
        return Ok(());
    }
    let result = write(option, socket, was);
    match (result, read(option, socket)) {
        (Ok(()), Ok(is)) if option.is_same(&is, was) => Ok(()),
        (Ok(()), Ok(is)) => Err(format!("{} is {is}, was {was}", option.label)),
        (Err(error), Ok(is)) => Err(format!("{} is {is}, was {was}: {error}", option.label)),
        (_, Err(error)) => Err(format!("{}, which was {was}: {error}", option.label)),
    }
}

fn write(option: &SocketOption, socket: &OwnedFd, value: &Value) -> io::Result<()> {
    let (level, mut name) = (option.level, option.name);
    let bytes = match (value, option.form) {
        (Value::Int(value), Form::Int) => match option.how {
            How::Plain => value.to_ne_bytes().to_vec(),
            How::Buffer(force) => {
                name = force;
                // The kernel doubles it.
                (value / 2 + value % 2).to_ne_bytes().to_vec()
            }
        },
        (Value::Bytes(bytes), Form::Bytes(_)) => bytes.clone(),
        (Value::Text(text), Form::Text) => text.clone().into_bytes(),
        (Value::Text(device), Form::Device) => {
            raw::device_index(socket, device)?.to_ne_bytes().to_vec()
        }
        (Value::Text(device), Form::DeviceBigEndian) => {
            raw::device_index(socket, device)?.to_be_bytes().to_vec()
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    raw::set(socket, level, name, &bytes)
}

#[cfg(test)]
#[path = "socket/test.rs"]
mod test;
