//! Fuzzes [`mesh_fuzz::proxy_v2`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::proxy_v2(bytes));
