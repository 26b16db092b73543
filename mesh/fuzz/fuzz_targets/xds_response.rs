//! Fuzzes [`mesh_fuzz::xds_response`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::xds_response(bytes));
