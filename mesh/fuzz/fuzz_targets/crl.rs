//! Fuzzes [`mesh_fuzz::crl`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::crl(bytes));
