//! Every message in every version, against the crate kafka-protocol, whose messages are generated from Kafka's own definitions.

use bytes::{Buf, Bytes, BytesMut};
use faultbox_kafka::codec::schema::{self, Field, Kind};
use faultbox_kafka::codec::value::{Form, Struct, Value, decode, encode};
use faultbox_kafka::codec::{Reply, Request, form};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request as Theirs};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};

/// A message of any content that is not null.
fn fill(fields: &'static [Field], version: i16, depth: usize, random: &mut TestRng) -> Struct {
    let mut filled = Struct::new(fields, version);
    let present: Vec<&'static Field> = filled.entries().map(|(field, _)| field).collect();
    for field in present {
        let value = match &field.kind {
            Kind::Bool => Value::Int(i64::from(random.next_u32() & 1)),
            // All 64 bits would not fit the narrower ones.
            Kind::Signed(size) => Value::Int((random.next_u64() as i64) >> (64 - 8 * size)),
            Kind::Unsigned(size) => Value::Int((random.next_u64() >> (64 - 8 * size)) as i64),
            Kind::Float => Value::Float(f64::from(random.next_u32()).to_bits()),
            Kind::Uuid => {
                let mut id = [0; 16];
                random.fill_bytes(&mut id);
                Value::Uuid(id)
            }
            Kind::Text | Kind::Bytes => {
                let length = random.next_u32() as usize % 200;
                Value::Bytes(Some(Bytes::from(vec![b'a' + length as u8 % 26; length])))
            }
            Kind::Struct(inner) => Value::Struct(Some(fill(inner, version, depth, random))),
            Kind::List(inner) | Kind::Bare(inner) => {
                let count = random.next_u32() as usize % (3 - depth.min(2));
                // Their lists of identified things are maps: each name stands once in them, as random ones do.
                let items = (0..count).map(|_| fill(inner, version, depth + 1, random));
                Value::List(Some(items.collect()))
            }
        };
        assert!(filled.set(field.name, value), "{}", field.name);
    }
    filled
}

/// Ours is what theirs reads, and what theirs writes is ours again, byte for byte.
fn same<M: Encodable + Decodable>(
    fields: &'static [Field],
    form: Form,
    what: &str,
    random: &mut TestRng,
) {
    for _ in 0..8 {
        let ours = fill(fields, form.version, 0, random);
        let mut bytes = BytesMut::new();
        encode(&ours, form, &mut bytes);
        let bytes = bytes.freeze();
        let mut rest = bytes.clone();
        let theirs = M::decode(&mut rest, form.version)
            .unwrap_or_else(|e| panic!("{what} v{}: {e}", form.version));
        assert!(!rest.has_remaining(), "{what} v{}", form.version);
        let mut again = BytesMut::new();
        theirs.encode(&mut again, form.version).unwrap();
        assert_eq!(again, bytes, "{what} v{}", form.version);
        let mut read = bytes.clone();
        assert_eq!(decode(fields, form, &mut read).unwrap(), ours);
        for cut in 0..bytes.len() {
            // Whatever is missing is noticed, and nothing panics.
            assert!(
                decode(fields, form, &mut bytes.slice(..cut)).is_err(),
                "{what} {cut}"
            );
        }
    }
}

fn api_of<R>(random: &mut TestRng)
where
    R: Theirs + Encodable + Decodable + HeaderVersion,
    R::Response: Encodable + Decodable + HeaderVersion,
{
    let api = schema::api(R::KEY).unwrap_or_else(|| panic!("{} is missing", R::KEY));
    // OffsetCommit and OffsetFetch have versions that theirs does not have yet.
    let newest = api.newest.min(R::VERSIONS.max);
    assert!(
        newest >= 9 || newest == api.newest,
        "{}: {newest}",
        api.name
    );
    for version in R::VERSIONS.min.max(api.oldest)..=newest {
        let form = form(api, version);
        let header = if form.flexible { 2 } else { 1 };
        assert_eq!(
            R::header_version(version),
            header,
            "{} v{version}",
            api.name
        );
        let header = i16::from(api.reply_header_is_flexible(version));
        assert_eq!(
            R::Response::header_version(version),
            header,
            "{} v{version}",
            api.name
        );
        same::<R>(&api.request, form, api.name, random);
        same::<R::Response>(&api.response, form, api.name, random);
        whole::<R>(api, version, random);
    }
}

/// The same of whole messages, with their heads.
fn whole<R>(api: &'static schema::Api, version: i16, random: &mut TestRng)
where
    R: Theirs + Decodable + HeaderVersion,
    R::Response: Decodable + HeaderVersion,
{
    let mut request = Request::new(api, version, 4711);
    request.body = fill(&api.request, version, 0, random);
    let bytes = request.encode();
    assert_eq!(
        Request::decode(bytes.clone()).unwrap().as_ref(),
        Some(&request)
    );
    let mut rest = bytes.slice(4..);
    let header = RequestHeader::decode(&mut rest, R::header_version(version)).unwrap();
    assert_eq!(
        (header.request_api_key, header.correlation_id),
        (R::KEY, 4711)
    );
    assert_eq!(header.client_id.as_deref(), Some("faultbox"));
    R::decode(&mut rest, version).unwrap();
    assert!(rest.is_empty());
    let mut reply = Reply::new(api, version, -5);
    reply.body = fill(&api.response, version, 0, random);
    let bytes = reply.encode();
    assert_eq!(Reply::decode(api, version, bytes.clone()).unwrap(), reply);
    let mut rest = bytes.slice(4..);
    let header = ResponseHeader::decode(&mut rest, R::Response::header_version(version)).unwrap();
    assert_eq!(header.correlation_id, -5);
    R::Response::decode(&mut rest, version).unwrap();
    assert!(rest.is_empty());
}

macro_rules! every {
    ($random:expr, $($request:ident)*) => {{
        $( api_of::<$request>($random); )*
        [$( <$request as Theirs>::KEY ),*]
    }};
}

#[test]
fn every_version_is_as_kafka_defines_it() {
    let mut runner = TestRunner::new(Config::default());
    let random = runner.rng();
    let keys = every!(random,
        ProduceRequest FetchRequest ListOffsetsRequest MetadataRequest OffsetCommitRequest OffsetFetchRequest FindCoordinatorRequest
        JoinGroupRequest HeartbeatRequest LeaveGroupRequest SyncGroupRequest DescribeGroupsRequest ListGroupsRequest SaslHandshakeRequest
        ApiVersionsRequest CreateTopicsRequest DeleteTopicsRequest DeleteRecordsRequest InitProducerIdRequest OffsetForLeaderEpochRequest
        AddPartitionsToTxnRequest AddOffsetsToTxnRequest EndTxnRequest TxnOffsetCommitRequest DescribeAclsRequest CreateAclsRequest
        DeleteAclsRequest DescribeConfigsRequest AlterConfigsRequest DescribeLogDirsRequest SaslAuthenticateRequest
        CreatePartitionsRequest CreateDelegationTokenRequest RenewDelegationTokenRequest ExpireDelegationTokenRequest
        DescribeDelegationTokenRequest DeleteGroupsRequest ElectLeadersRequest IncrementalAlterConfigsRequest
        AlterPartitionReassignmentsRequest ListPartitionReassignmentsRequest OffsetDeleteRequest DescribeClientQuotasRequest
        AlterClientQuotasRequest DescribeQuorumRequest UpdateFeaturesRequest DescribeClusterRequest DescribeProducersRequest
        DescribeTransactionsRequest ListTransactionsRequest ConsumerGroupHeartbeatRequest ConsumerGroupDescribeRequest
        GetTelemetrySubscriptionsRequest PushTelemetryRequest ListConfigResourcesRequest DescribeTopicPartitionsRequest
        ShareGroupHeartbeatRequest ShareGroupDescribeRequest ShareFetchRequest ShareAcknowledgeRequest
    );
    for api in schema::apis() {
        assert!(keys.contains(&api.key), "{} is not compared", api.name);
    }
}

/// What the generated messages no longer have, byte by byte as Kafka 0.8 to 0.10 had it.
#[test]
fn the_oldest_versions() {
    type Case = (i16, i16, &'static [u8], &'static [u8]);
    const CASES: &[Case] = &[
        // Produce 0: acks 1, timeout 2; topic "t", partition 3, two bytes of records. Its response: no error, offset 9.
        (
            schema::PRODUCE,
            0,
            b"\0\x01\0\0\0\x02\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\x02ab",
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\x09",
        ),
        // Produce 2: the response has the time of appending, and the throttling time at its end.
        (
            schema::PRODUCE,
            2,
            b"\0\x01\0\0\0\x02\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\x02ab",
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\x09\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        ),
        // Fetch 0: a consumer, waits 1, at least 2; topic "t", partition 3 from 4, at most 5. Its response: high watermark 9.
        (
            schema::FETCH,
            0,
            b"\xff\xff\xff\xff\0\0\0\x01\0\0\0\x02\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\x05",
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\x09\0\0\0\x02ab",
        ),
        // Fetch 3: at most 6 in all; the throttling time comes first.
        (
            schema::FETCH,
            3,
            b"\xff\xff\xff\xff\0\0\0\x01\0\0\0\x02\0\0\0\x06\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\x05",
            b"\0\0\0\0\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\x09\0\0\0\x02ab",
        ),
        // ListOffsets 0: the latest, one of them; the response is a list of offsets.
        (
            schema::LIST_OFFSETS,
            0,
            b"\xff\xff\xff\xff\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x01",
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\x01\0\0\0\0\0\0\0\x09",
        ),
        // OffsetCommit 1: with generation, member, and the time of each commit.
        (
            8,
            1,
            b"\0\x01g\0\0\0\x05\0\x01m\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\x09\xff\xff\xff\xff\xff\xff\xff\xff\0\0",
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x03\0\0",
        ),
        // CreateTopics 0: one partition, one replica, no assignment, no configuration.
        (
            19,
            0,
            b"\0\0\0\x01\0\x01t\0\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01",
            b"\0\0\0\x01\0\x01t\0\0",
        ),
    ];
    for (key, version, request, reply) in CASES {
        let api = schema::api(*key).unwrap();
        for (fields, bytes) in [(&api.request, request), (&api.response, reply)] {
            let form = form(api, *version);
            let mut rest = Bytes::from_static(bytes);
            let read = decode(fields, form, &mut rest)
                .unwrap_or_else(|e| panic!("{} v{version}: {}", api.name, e.0));
            assert!(rest.is_empty(), "{} v{version}", api.name);
            let mut again = BytesMut::new();
            encode(&read, form, &mut again);
            assert_eq!(again, bytes[..], "{} v{version}", api.name);
        }
    }
}

proptest! {
    /// Bytes that nobody has thought of are no message, or the same message again, and never a panic.
    #[test]
    fn any_bytes(key in 0i16..80, version in 0i16..19, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(api) = schema::api(key).filter(|api| api.knows(version)) {
            for fields in [&api.request, &api.response] {
                let mut rest = Bytes::from(bytes.clone());
                if let Ok(read) = decode(fields, form(api, version), &mut rest) {
                    let mut again = BytesMut::new();
                    encode(&read, form(api, version), &mut again);
                    let reread = decode(fields, form(api, version), &mut again.freeze());
                    prop_assert_eq!(reread, Ok(read));
                }
            }
        }
    }
}
