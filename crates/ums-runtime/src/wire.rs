//! CRIU's side of its RPC with a container runtime (`criu swrk`, CRIU `criu/cr-service.c`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};
use prost::Message;
use ums_checkpoint::criu::rpc::{Notify, Request, RequestType, Response, RestoreResponse, Version};

/// The longest request, bytes: every mount of a container is in it.
const REQUEST_LEN_MAX: usize = 1 << 20;
/// The version of CRIU whose RPC this is.
const VERSION: (i32, i32, i32) = (4, 2, 1);

/// A container runtime that restores.
pub(crate) struct Runtime {
    socket: OwnedFd,
}

impl Runtime {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether nobody is at the other end any more.
    pub(crate) fn has_gone(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.socket.as_raw_fd(), &mut [0], flags), Ok(0))
    }

    /// What it asks; `None` when it has gone.
    pub(crate) fn request(&self) -> io::Result<Option<Request>> {
        let mut bytes = vec![0; REQUEST_LEN_MAX];
        let len = loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                other => break other?,
            }
        };
        if len == 0 {
            return Ok(None);
        }
        let request = Request::decode(&bytes[..len]).map_err(io::Error::other)?;
        Ok(Some(request))
    }

    fn answer(&self, response: &Response) -> io::Result<()> {
        let bytes = response.encode_to_vec();
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Answers which CRIU this is.
    pub(crate) fn version(&self) -> io::Result<()> {
        let (major, minor, sublevel) = VERSION;
        let version = Version {
            major,
            minor,
            sublevel: Some(sublevel),
        };
        self.answer(&Response {
            kind: RequestType::Version as i32,
            success: true,
            version: Some(version),
            ..Response::default()
        })
    }

    /// Tells of a moment of the restore, and waits until the runtime has done what it does then.
    pub(crate) fn notify(&self, script: &str, pid: i32) -> Result<(), String> {
        let told = self.answer(&Response {
            kind: RequestType::Notify as i32,
            success: true,
            notify: Some(Notify {
                script: Some(script.to_owned()),
                pid: Some(pid),
            }),
            ..Response::default()
        });
        let gone = |error| format!("runc has gone at {script}: {error}");
        told.map_err(gone)?;
        let answer = self.request().map_err(gone)?;
        match answer.and_then(|answer| answer.notify_success) {
            Some(true) => Ok(()),
            Some(false) => Err(format!("runc has failed at {script}")),
            None => Err(format!("runc has gone at {script}")),
        }
    }

    /// Says that the processes are there.
    pub(crate) fn restored(&self, pid: i32) -> io::Result<()> {
        self.answer(&Response {
            kind: RequestType::Restore as i32,
            success: true,
            restore: Some(RestoreResponse { pid }),
            ..Response::default()
        })
    }

    /// Says that there will be none.
    pub(crate) fn failed(&self, kind: i32, why: &str) -> io::Result<()> {
        self.answer(&Response {
            kind,
            success: false,
            cr_errmsg: Some(why.to_owned()),
            ..Response::default()
        })
    }
}
