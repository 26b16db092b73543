//! Fuzzes [`mesh_fuzz::authority`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::authority(bytes));
