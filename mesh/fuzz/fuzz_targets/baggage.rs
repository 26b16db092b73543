//! Fuzzes [`mesh_fuzz::baggage`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::baggage(bytes));
