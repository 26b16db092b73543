//! Fuzzes [`ztunnel_fuzz::proxy_config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::proxy_config(bytes));
