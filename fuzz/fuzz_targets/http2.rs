//! Whole sessions of http2 through its proxy, out of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let degraded = faultbox_engine::testing::fuzz::body(faultbox_http2::http2(), data);
    assert!(degraded.len() <= 1, "{degraded:?}");
});
