//! libFuzzer's way to the target `page_server` of `ums_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ums_fuzz::under_libfuzzer("page_server", data));
