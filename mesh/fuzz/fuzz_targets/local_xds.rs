//! Fuzzes [`mesh_fuzz::local_xds`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::local_xds(bytes));
