//! Fuzzes [`ztunnel_fuzz::resolv_conf`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztunnel_fuzz::resolv_conf(bytes));
