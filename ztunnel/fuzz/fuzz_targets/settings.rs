//! Fuzzes [`ztunnel_fuzz::settings`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::settings(bytes));
