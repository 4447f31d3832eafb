//! What programs can find that a CPU can do.
//!
//! They ask the CPU (CPUID), and so do we: `/proc/cpuinfo` has the names that one kernel knows, and an
//! older kernel on the same machine knows fewer. What needs registers that the kernel has to save is there
//! only where the kernel says so, by the name of the feature that it began with.

use std::collections::BTreeSet;

/// Which features a node offers to programs, by the names of Linux (`cpufeatures.h`); `listed` are
/// those in `/proc/cpuinfo`.
pub(super) fn features(listed: BTreeSet<String>) -> BTreeSet<String> {
    let asked = asked().into_iter();
    let usable = asked.filter(|name| base(name).is_none_or(|base| listed.contains(base)));
    let usable: Vec<String> = usable.map(str::to_owned).collect();
    listed.into_iter().chain(usable).collect()
}

/// The feature without whose registers this one can't be used.
fn base(name: &str) -> Option<&'static str> {
    match name {
        "f16c" | "fma" | "fma4" | "vaes" | "vpclmulqdq" | "xop" | "sha512" | "sm3" | "sm4" => {
            Some("avx")
        }
        "avx10" => Some("avx512f"),
        name if name.starts_with("avx512") => Some("avx512f"),
        name if name.starts_with("avx") => Some("avx"),
        name if name.starts_with("amx_") => Some("amx_tile"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn asked() -> Vec<&'static str> {
    Vec::new()
}

/// What the CPU answers: Intel's Software Developer's Manual, volume 2, CPUID; AMD's Architecture
/// Programmer's Manual, volume 3, appendix E.
#[cfg(target_arch = "x86_64")]
fn asked() -> Vec<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let mut found = Vec::new();
    for (leaf, subleaf, registers) in LEAVES {
        // An answer beyond the last leaf is that of another one.
        let last = __cpuid(leaf & 0x8000_0000).eax;
        let last_of_7 = || __cpuid_count(7, 0).eax;
        if *leaf > last || (*leaf == 7 && *subleaf > last_of_7()) {
            continue;
        }
        let answer = __cpuid_count(*leaf, *subleaf);
        let answer = [answer.eax, answer.ebx, answer.ecx, answer.edx];
        for (register, bits) in *registers {
            let set = bits
                .iter()
                .filter(|(bit, _)| answer[*register] & (1 << bit) != 0);
            found.extend(set.map(|(_, name)| *name));
        }
    }
    found
}

/// A leaf and subleaf of CPUID, and of each register (EAX, EBX, ECX, EDX) bits with their names.
#[cfg(target_arch = "x86_64")]
type Leaf = (u32, u32, &'static [(usize, &'static [(u32, &'static str)])]);

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const LEAVES: &[Leaf] = &[
    (1, 0, &[
        (2, &[
            (0, "pni"), (1, "pclmulqdq"), (9, "ssse3"), (12, "fma"), (13, "cx16"), (19, "sse4_1"),
            (20, "sse4_2"), (22, "movbe"), (23, "popcnt"), (25, "aes"), (26, "xsave"), (28, "avx"),
            (29, "f16c"), (30, "rdrand"),
        ]),
        (3, &[
            (8, "cx8"), (15, "cmov"), (19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"),
        ]),
    ]),
    (7, 0, &[
        (1, &[
            (0, "fsgsbase"), (3, "bmi1"), (5, "avx2"), (8, "bmi2"), (11, "rtm"), (16, "avx512f"),
            (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (21, "avx512ifma"), (23, "clflushopt"),
            (24, "clwb"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"),
            (30, "avx512bw"), (31, "avx512vl"),
        ]),
        (2, &[
            (1, "avx512vbmi"), (3, "pku"), (4, "ospke"), (5, "waitpkg"), (6, "avx512_vbmi2"), (8, "gfni"),
            (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"), (22, "rdpid"), (27, "movdiri"), (28, "movdir64b"),
        ]),
        (3, &[
            (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (8, "avx512_vp2intersect"), (14, "serialize"),
            (22, "amx_bf16"), (23, "avx512_fp16"), (24, "amx_tile"), (25, "amx_int8"),
        ]),
    ]),
    (7, 1, &[
        (0, &[
            (0, "sha512"), (1, "sm3"), (2, "sm4"), (3, "raoint"), (4, "avx_vnni"), (5, "avx512_bf16"),
            (7, "cmpccxadd"), (21, "amx_fp16"), (23, "avx_ifma"),
        ]),
        (3, &[
            (4, "avx_vnni_int8"), (5, "avx_ne_convert"), (8, "amx_complex"), (10, "avx_vnni_int16"),
            (19, "avx10"),
        ]),
    ]),
    (0xd, 1, &[(0, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")])]),
    (0x14, 0, &[(1, &[(4, "ptwrite")])]),
    (0x8000_0001, 0, &[
        (2, &[
            (0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (11, "xop"), (15, "lwp"),
            (16, "fma4"), (21, "tbm"), (29, "mwaitx"),
        ]),
        (3, &[(11, "syscall"), (22, "mmxext"), (27, "rdtscp"), (30, "3dnowext"), (31, "3dnow")]),
    ]),
    (0x8000_0008, 0, &[(1, &[(0, "clzero"), (4, "rdpru")])]),
];

#[cfg(test)]
mod test {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The kernel of this machine asks the same CPU.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_kernel_and_we_hear_the_same_of_what_both_know() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let listed = super::super::parse::cpu_features(&text).unwrap();
        let asked = asked();
        let table = LEAVES.iter().flat_map(|(_, _, registers)| *registers);
        let names = table.flat_map(|(_, bits)| *bits).map(|(_, name)| *name);
        let unheard: Vec<&str> = names
            .filter(|name| listed.contains(*name) && !asked.contains(name))
            .collect();
        assert_eq!(unheard, [] as [&str; 0]);
        assert!(asked.contains(&"sse2") && asked.contains(&"syscall"));
    }

    #[test]
    fn what_needs_registers_is_there_where_the_kernel_keeps_them() {
        for (name, needed) in [
            ("avx2", "avx"),
            ("vaes", "avx"),
            ("avx512vl", "avx512f"),
            ("amx_int8", "amx_tile"),
        ] {
            assert_eq!(base(name), Some(needed));
        }
        assert_eq!(base("bmi2"), None);
        let without = features(set(&["sse2"]));
        assert!(
            !without.iter().any(|name| name.starts_with("avx")),
            "{without:?}"
        );
        assert!(without.contains("sse2"));
    }
}
