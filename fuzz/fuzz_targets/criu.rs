//! libFuzzer's way to the target `criu` of `ums_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ums_fuzz::under_libfuzzer("criu", data));
