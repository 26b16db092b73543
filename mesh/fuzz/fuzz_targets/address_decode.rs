//! Fuzzes [`mesh_fuzz::address_decode`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::address_decode(bytes));
