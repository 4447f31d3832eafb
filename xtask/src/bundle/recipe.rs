//! What goes into the bundle, and from where.

/// Raised when the same packages would give another bundle; an older bundle is then rebuilt.
pub(crate) const RECIPE: u32 = 1;

/// The lowest CRIU that dumps sockets on current kernels (older ones fail to read the
/// socket options or refuse the vdso).
pub(crate) const CRIU_LOWEST: &str = "4.2.1";

/// Suites to take CRIU from, best first. Versions there move, hence the self-test.
pub(crate) const CRIU_SUITES: [&str; 2] = ["forky", "sid"];

/// Suites to take runc from: the oldest one's binary runs on every newer libc.
pub(crate) const RUNC_SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// The packages asked for; their libraries come along as dependencies.
pub(crate) const PACKAGES: [&str; 6] = ["criu", "gzip", "iproute2", "iptables", "nftables", "tar"];

/// One program of the bundle.
pub(crate) struct Program {
    /// Its name in `bin` and `libexec`.
    pub(crate) name: &'static str,
    /// Where its package installs it.
    pub(crate) path: &'static str,
}

/// Programs that run with the bundle's loader and libraries.
pub(crate) const PROGRAMS: [Program; 11] = [
    Program {
        name: "criu",
        path: "usr/sbin/criu",
    },
    // CRIU carries the contents of tmpfs mounts with tar and gzip,
    Program {
        name: "tar",
        path: "usr/bin/tar",
    },
    Program {
        name: "gzip",
        path: "usr/bin/gzip",
    },
    // addresses and routes of a network namespace with ip,
    Program {
        name: "ip",
        path: "usr/bin/ip",
    },
    // and packet filter rules with iptables; nft is for those who hold packets themselves.
    Program {
        name: "iptables",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "iptables-save",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "iptables-restore",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "ip6tables",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "ip6tables-save",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "ip6tables-restore",
        path: "usr/sbin/xtables-nft-multi",
    },
    Program {
        name: "nft",
        path: "usr/sbin/nft",
    },
];

/// runc, which runs on the host's libc (see the launcher).
pub(crate) const RUNC: Program = Program {
    name: "runc",
    path: "usr/sbin/runc",
};

/// The package with the library that runc takes from the bundle.
pub(crate) const RUNC_LIBRARY: &str = "libseccomp2";

/// Whether a Debian version (`4.2.1-1`) is at least the lowest CRIU.
pub(crate) fn is_new_enough(version: &str) -> bool {
    numbers(version) >= numbers(CRIU_LOWEST)
}

fn numbers(version: &str) -> Vec<u32> {
    let upstream = version.split(['-', '+', '~']).next().unwrap_or_default();
    upstream
        .split('.')
        .map(|part| part.parse().unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn compares_versions_by_number() {
        assert!(is_new_enough("4.2.1-1"));
        assert!(is_new_enough("4.10-1"));
        assert!(!is_new_enough("4.2-3"));
        assert!(!is_new_enough("4.1.1-1"));
        assert!(!is_new_enough("3.17.1-2"));
    }
}
