//! Whole sessions of grpc through its proxy, out of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let degraded = faultbox_engine::testing::fuzz::body(faultbox_http2::grpc(), data);
    assert!(degraded.len() <= 1, "{degraded:?}");
});
