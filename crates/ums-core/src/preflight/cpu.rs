//! Architecture and CPU features.

use std::collections::BTreeSet;

use super::{Refusal, RefusalKind};
use crate::facts::NodeFacts;

/// Machine code runs on its own architecture only.
pub(super) fn architecture(source: &NodeFacts, destination: &NodeFacts) -> Option<Refusal> {
    (source.architecture != destination.architecture).then(|| {
        Refusal::new(
            RefusalKind::Architecture,
            format!(
                "the service runs on {}, the destination is {}",
                source.architecture, destination.architecture
            ),
            "choose a destination of the same architecture",
        )
    })
}

/// Features that a program may have found and built upon at the source must be there. Which of
/// them it did find can't be told from outside (function pointers are resolved at start), so
/// every one that userspace can use counts.
pub(super) fn features(source: &NodeFacts, destination: &NodeFacts) -> Option<Refusal> {
    if source.architecture != destination.architecture {
        return None;
    }
    let usable = |name: &&String| is_for_userspace(&source.architecture, name);
    let lacking: BTreeSet<&str> = source
        .cpu_features
        .difference(&destination.cpu_features)
        .filter(usable)
        .map(String::as_str)
        .collect();
    (!lacking.is_empty()).then(|| {
        let names = lacking.into_iter().collect::<Vec<_>>().join(" ");
        Refusal::new(
            RefusalKind::CpuFeatures,
            format!("the destination's CPU lacks features that programs may be using: {names}"),
            "choose a destination with the same or a newer CPU, or start the service on a CPU \
             (or a virtual machine's CPU model) that both have in common",
        )
    })
}

fn is_for_userspace(architecture: &str, feature: &str) -> bool {
    match architecture {
        "x86_64" | "i686" => {
            X86_FAMILIES
                .iter()
                .any(|family| feature.starts_with(family))
                || X86_INSTRUCTIONS.contains(&feature)
        }
        // Elsewhere the kernel lists what it offers to userspace (ELF_HWCAP); these two are about
        // the kernel's own services.
        _ => !["evtstrm", "cpuid"].contains(&feature),
    }
}

/// Vector and matrix extensions: instructions, and registers that a checkpoint carries.
const X86_FAMILIES: [&str; 5] = ["sse", "avx", "amx_", "xsave", "vaes"];

/// Instructions that userspace can execute and that fault, or do something else, where they are
/// missing. Hints that older processors ignore (`erms`, `3dnowprefetch`, `cldemote`), the kernel's
/// own features (`smep`, `pcid`, `xsaves`' supervisor states), what the kernel offers on top
/// (`user_shstk`), and the names of bugs and of virtualization features are left out.
const X86_INSTRUCTIONS: [&str; 57] = [
    "3dnow",
    "3dnowext",
    "abm",
    "adx",
    "aes",
    "apx",
    "bmi1",
    "bmi2",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cmpccxadd",
    "cx16",
    "cx8",
    "enqcmd",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fxsr",
    "gfni",
    "lahf_lm",
    "lwp",
    "misalignsse",
    "mmx",
    "mmxext",
    "movbe",
    "movdir64b",
    "movdiri",
    "mwaitx",
    "ospke",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "ptwrite",
    "raoint",
    "rdpid",
    "rdpru",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha512",
    "sha_ni",
    "sm3",
    "sm4",
    "ssse3",
    "syscall",
    "tbm",
    "vpclmulqdq",
    "waitpkg",
    "xgetbv1",
    "xop",
];

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn kernel_features_and_hints_do_not_count() {
        for name in [
            "avx512f", "sse4_2", "amx_tile", "fma", "rdrand", "xsavec", "vaes",
        ] {
            assert!(is_for_userspace("x86_64", name), "{name}");
        }
        for name in [
            "smep",
            "pcid",
            "erms",
            "vmx",
            "arch_capabilities",
            "hypervisor",
            "md_clear",
            "user_shstk",
        ] {
            assert!(!is_for_userspace("x86_64", name), "{name}");
        }
        assert!(is_for_userspace("aarch64", "sve2"));
        assert!(!is_for_userspace("aarch64", "evtstrm"));
    }

    #[test]
    fn the_table_is_sorted_and_has_no_name_twice() {
        assert!(X86_INSTRUCTIONS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
