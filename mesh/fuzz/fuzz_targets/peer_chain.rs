//! Fuzzes [`mesh_fuzz::peer_chain`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::peer_chain(bytes));
