//! Fuzzes [`ztunnel_fuzz::pod_record`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::pod_record(bytes));
