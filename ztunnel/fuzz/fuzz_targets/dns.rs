//! Fuzzes [`ztunnel_fuzz::dns`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::dns(bytes));
