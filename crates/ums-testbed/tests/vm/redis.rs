//! Redis as a service of the machines.

use ums_testbed::vm::Release;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::SERVICES;

/// The system that it is started on, at whose address its clients find it wherever it is.
pub(crate) const HOME: Release = Release::Bookworm;

/// Starts it with so many keys.
pub(crate) fn start(machine: &Machine, keys: u32) {
    let started = machine.ok(&format!(
        "ums run redis --rootfs {SERVICES}/redis --volume data:/data --publish 6379:6379 -- \
         /bin/redis-server --bind 0.0.0.0 --protected-mode no --dir /data --save '' --appendonly yes \
         --enable-debug-command yes"
    ));
    started.unwrap_or_else(|error| panic!("{error:#}\n{}", crate::said(machine)));
    let ping = ping(machine.release());
    machine
        .until("an answer of Redis", 20, &ping)
        .expect("PONG");
    let filled = asked(machine, &format!("debug populate {keys} key 100"));
    assert_eq!(filled, "OK");
}

/// A digest of all keys and their values.
pub(crate) fn digest(machine: &Machine) -> String {
    let digest = asked(machine, "debug digest");
    assert!(
        digest.len() == 40 && digest.bytes().any(|byte| byte != b'0'),
        "no digest: {digest}"
    );
    digest
}

/// What Redis at the machine's own address answers.
pub(crate) fn asked(machine: &Machine, what: &str) -> String {
    let answer = machine.ok(&client(machine.release(), what));
    answer.unwrap_or_else(|error| panic!("{error:#}\n{}", crate::said(machine)))
}

/// Asks the Redis at one machine's address from a machine.
pub(crate) fn ping(server: Release) -> String {
    client(server, "ping")
}

/// Says something to the Redis at one machine's address, from any.
pub(crate) fn client(server: Release, what: &str) -> String {
    let address = server.address();
    format!(
        "chroot {SERVICES}/redis /bin/redis-cli -h {address} {what} | tee /dev/stderr | grep -v ERR"
    )
}

/// A client on one connection that adds to a counter again and again.
pub(crate) fn counting(server: Release, counter: &str, times: u32) -> String {
    let address = server.address();
    format!(
        "chroot {SERVICES}/redis /bin/redis-cli -h {address} -r {times} -i 0.01 incr {counter} >/dev/null"
    )
}
