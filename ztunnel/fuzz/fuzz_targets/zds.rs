//! Fuzzes [`ztunnel_fuzz::zds`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::zds(bytes));
