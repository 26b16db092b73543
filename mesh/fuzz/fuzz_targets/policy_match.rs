//! Fuzzes [`mesh_fuzz::policy_match`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::policy_match(bytes));
