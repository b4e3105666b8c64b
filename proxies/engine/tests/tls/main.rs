//! What a proxy between two TLS peers promises: the bytes, the ends, and everything that the peers agree on in the handshake.

mod peers;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use faultbox_contract::tls::Verify;
use faultbox_contract::{Endpoint, Tls};
use faultbox_engine::testing::Harness;
use faultbox_engine::tls::mint::Authority;
use peers::{
    Client, Ending, authority, client, client_config, cut_off, hear, leaf, provider, proxy,
    say_goodbye_client, say_goodbye_server, serve_one, server_config, tls,
};
use proptest::prelude::*;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig,
};

/// Runs a blocking client beside the proxy.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn good_server() -> ServerConfig {
    server_config(&leaf("localhost"))
}

/// The TLS error within an I/O error.
fn tls_error(error: std::io::Error) -> Error {
    let text = error.to_string();
    match error.into_inner().map(|e| e.downcast::<Error>()) {
        Some(Ok(error)) => *error,
        _ => panic!("no TLS error: {text}"),
    }
}

/// The events of handshakes and streams that failed: side and error.
fn failures(harness: &Harness) -> Vec<(String, String)> {
    harness
        .events
        .of_kind("proxy_tls_failed")
        .iter()
        .map(|e| {
            let text = |key: &str| e.fields[key].as_str().unwrap_or_default().to_owned();
            (text("side"), text("error"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_half_close_pass_in_both_directions() {
    let (addr, serving) = serve_one(good_server(), |mut server| {
        let (heard, ending) = hear(&mut server);
        assert_eq!(ending, Ending::Notified);
        // The client has closed its side; ours is still open.
        server.write_all(&heard).unwrap();
        say_goodbye_server(&mut server);
        heard.len()
    });
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let sent: Vec<u8> = (0..4_000_000u32).map(|i| (i * 7) as u8).collect();
    let (heard, ending) = beside({
        let sent = sent.clone();
        move || {
            let mut client = client(at, client_config(), "localhost");
            client.write_all(&sent).unwrap();
            say_goodbye_client(&mut client);
            hear(&mut client)
        }
    })
    .await;
    assert!(heard == sent);
    assert_eq!(ending, Ending::Notified);
    assert_eq!(serving.join().unwrap(), sent.len());
    assert_eq!(harness.events.all().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_whole() {
    // More than fits behind a handshake in one read, said without waiting.
    let speech: Vec<u8> = (0..300_000u32).map(|i| (i * 3) as u8).collect();
    let said = speech.clone();
    let (addr, serving) = serve_one(good_server(), move |mut server| {
        server.write_all(&said).unwrap();
        say_goodbye_server(&mut server);
        hear(&mut server).1
    });
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let (heard, ending) = beside(move || {
        let mut client = client(at, client_config(), "localhost");
        let all = hear(&mut client);
        say_goodbye_client(&mut client);
        all
    })
    .await;
    assert!(heard == speech);
    assert_eq!(ending, Ending::Notified);
    assert_eq!(serving.join().unwrap(), Ending::Notified);
}

/// How a peer may end its side.
#[derive(Debug, Clone, Copy)]
enum Death {
    Goodbye,
    Fin,
    Rst,
}

impl Death {
    fn looks(self) -> Ending {
        match self {
            Death::Goodbye => Ending::Notified,
            Death::Fin => Ending::Truncated,
            Death::Rst => Ending::Reset,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_ends_for_the_client_as_it_ended() {
    for death in [Death::Goodbye, Death::Fin, Death::Rst] {
        let (addr, serving) = serve_one(good_server(), move |mut server| {
            let mut asked = [0; 4];
            server.read_exact(&mut asked).unwrap();
            server.write_all(b"half an ans").unwrap();
            match death {
                Death::Goodbye => say_goodbye_server(&mut server),
                Death::Fin => server.sock.shutdown(Shutdown::Both).unwrap(),
                Death::Rst => {
                    // What was said arrives before that: the client tells when it has it.
                    server.read_exact(&mut asked).unwrap();
                    cut_off(server.sock);
                }
            }
        });
        let harness = proxy(addr, tls());
        let at = harness.addr;
        let (answer, ending) = beside(move || {
            let mut client = client(at, client_config(), "localhost");
            client.write_all(b"ask!").unwrap();
            let mut answer = [0; 11];
            client.read_exact(&mut answer).unwrap();
            client.write_all(b"okay").unwrap();
            (answer, hear(&mut client).1)
        })
        .await;
        serving.join().unwrap();
        assert_eq!(&answer, b"half an ans");
        assert_eq!(ending, death.looks(), "{death:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_ends_for_the_server_as_it_ended() {
    for death in [Death::Goodbye, Death::Fin, Death::Rst] {
        let (addr, serving) = serve_one(good_server(), move |mut server| {
            let mut asked = [0; 4];
            server.read_exact(&mut asked).unwrap();
            server.write_all(b"okay").unwrap();
            hear(&mut server).1
        });
        let harness = proxy(addr, tls());
        let at = harness.addr;
        beside(move || {
            let mut client: Client = client(at, client_config(), "localhost");
            client.write_all(b"ask!").unwrap();
            let mut answer = [0; 4];
            client.read_exact(&mut answer).unwrap();
            match death {
                Death::Goodbye => say_goodbye_client(&mut client),
                Death::Fin => client.sock.shutdown(Shutdown::Write).unwrap(),
                Death::Rst => cut_off(client.sock),
            }
        })
        .await;
        assert_eq!(serving.join().unwrap(), death.looks(), "{death:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn name_and_protocol_pass_through() {
    let mut config = server_config(&authority().issue(&["shop.test".to_owned()]).unwrap());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (addr, serving) = serve_one(config, |mut server| {
        let mut asked = [0; 4];
        server.read_exact(&mut asked).unwrap();
        server.write_all(b"okay").unwrap();
        let name = server.conn.server_name().map(str::to_owned);
        (name, server.conn.alpn_protocol().map(<[u8]>::to_vec))
    });
    let shown = authority().issue(&["shop.test".to_owned()]).unwrap();
    let harness = proxy(addr, Tls { shown, ..tls() });
    let at = harness.addr;
    let chosen = beside(move || {
        let mut config = client_config();
        // In the client's order h2 is last; the server prefers it.
        config.alpn_protocols = vec![b"spdy/3".to_vec(), b"http/1.1".to_vec(), b"h2".to_vec()];
        let mut client = client(at, config, "shop.test");
        client.write_all(b"ask!").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        client.conn.alpn_protocol().map(<[u8]>::to_vec)
    })
    .await;
    let (name, served) = serving.join().unwrap();
    assert_eq!(name.as_deref(), Some("shop.test"));
    assert_eq!(chosen, served);
    assert!(chosen.is_some());
    assert_eq!(harness.events.all().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_arrives_in_the_servers_words() {
    let mut config = good_server();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (addr, serving) = serve_one(config, |mut server| {
        server.read(&mut [0]).unwrap_err();
    });
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let error = beside(move || {
        let mut config = client_config();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        client(at, config, "localhost")
            .write_all(b"ask!")
            .unwrap_err()
    })
    .await;
    serving.join().unwrap();
    let alert = AlertDescription::NoApplicationProtocol;
    assert_eq!(tls_error(error), Error::AlertReceived(alert));
    let failures = failures(&harness);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].0, "upstream");
    assert!(
        failures[0].1.contains("no_application_protocol"),
        "{failures:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_servers_certificate_is_what_its_client_sees() {
    let stranger = Authority::new().unwrap();
    let unknown = stranger.issue(&["localhost".into()]).unwrap();
    let misnamed = authority().issue(&["shop.test".into()]).unwrap();
    for (identity, said) in [(unknown, "not trusted"), (misnamed, "is for")] {
        // Twice: the client that verifies, and the one that does not and would have got through.
        for verifies in [true, false] {
            let (addr, serving) = serve_one(server_config(&identity), |mut server| {
                let mut asked = [0; 4];
                let heard = server.read_exact(&mut asked);
                if heard.is_ok() {
                    server.write_all(b"okay").unwrap();
                }
                heard.is_ok()
            });
            let harness = proxy(addr, tls());
            let at = harness.addr;
            let outcome = beside(move || {
                let config = match verifies {
                    true => client_config(),
                    false => careless(),
                };
                let mut client = client(at, config, "localhost");
                client.write_all(b"ask!")?;
                client.read_exact(&mut [0; 4])
            })
            .await;
            assert_eq!(serving.join().unwrap(), !verifies);
            match outcome {
                Ok(()) => assert!(!verifies, "{said}"),
                Err(e) => {
                    let error = tls_error(e);
                    assert!(verifies, "{error}");
                    let Error::InvalidCertificate(error) = error else {
                        panic!("{said}: {error:?}");
                    };
                    let right = match said {
                        "not trusted" => error == CertificateError::UnknownIssuer,
                        _ => matches!(error, CertificateError::NotValidForNameContext { .. }),
                    };
                    assert!(right, "{said}: {error:?}");
                }
            }
            let events = harness.events.of_kind("proxy_tls_untrusted");
            assert_eq!(events.len(), 1);
            let text = events[0].fields["error"].as_str().unwrap();
            assert!(text.contains(said), "{text}");
        }
    }
}

/// A client that takes any certificate, as libpq's sslmode=require does.
fn careless() -> ClientConfig {
    #[derive(Debug)]
    struct Any;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, SignatureScheme};
    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any))
        .with_no_client_auth()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_named_by_the_spec_is_trusted_as_it_is() {
    // Self-signed, of an authority that signs itself, for another name: what `openssl req -x509` makes.
    let own = Authority::new().unwrap();
    let identity = own.identity().clone();
    for (verify, trusted) in [
        (Verify::Against(identity.chain.clone()), true),
        (Verify::Never, true),
        (tls().verify, false),
    ] {
        let (addr, serving) = serve_one(server_config(&identity), |mut server| {
            let _ = server.read(&mut [0; 4]);
        });
        let harness = proxy(addr, Tls { verify, ..tls() });
        let at = harness.addr;
        let said = beside(move || {
            client(at, client_config(), "localhost")
                .write_all(b"ask!")
                .is_ok()
        })
        .await;
        serving.join().unwrap();
        assert_eq!(said, trusted);
        let events = harness.events.of_kind("proxy_tls_untrusted").len();
        assert_eq!(events == 0, trusted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_certificate_gets_the_proxys() {
    for client_cert in [Some(leaf("app")), None] {
        let mut roots = RootCertStore::empty();
        let anchor = &authority().identity().chain;
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        roots
            .add(CertificateDer::from_pem_slice(anchor.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .unwrap();
        let mut config = good_server();
        config = {
            let identity = leaf("localhost");
            let key =
                rustls::pki_types::PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
            let chain = vec![CertificateDer::from_pem_slice(identity.chain.as_bytes()).unwrap()];
            let mut fresh = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap();
            fresh.alpn_protocols = config.alpn_protocols.clone();
            fresh
        };
        let (addr, serving) = serve_one(config, |mut server| {
            let heard = server.read_exact(&mut [0; 4]).is_ok();
            if heard {
                server.write_all(b"okay").unwrap();
            }
            (heard, server.conn.peer_certificates().is_some())
        });
        let has = client_cert.is_some();
        let harness = proxy(
            addr,
            Tls {
                client: client_cert,
                ..tls()
            },
        );
        let at = harness.addr;
        let answered = beside(move || {
            let mut client = client(at, client_config(), "localhost");
            client.write_all(b"ask!").is_ok() && client.read_exact(&mut [0; 4]).is_ok()
        })
        .await;
        assert_eq!(serving.join().unwrap(), (has, has));
        assert_eq!(answered, has);
        let failures = failures(&harness);
        let said = failures
            .iter()
            .any(|(side, error)| side == "upstream" && error.contains("certificate_required"));
        assert_eq!(said, !has, "{failures:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_hears_what_the_server_says_to_that() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut heard = vec![0; 16];
        socket.read_exact(&mut heard).unwrap();
        socket
            .write_all(b"plain HTTP request was sent to HTTPS port")
            .unwrap();
        heard
    });
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let answer = beside(move || {
        let mut socket = TcpStream::connect(at).unwrap();
        socket.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    })
    .await;
    assert_eq!(serving.join().unwrap(), b"GET / HTTP/1.0\r\n");
    assert_eq!(answer, "plain HTTP request was sent to HTTPS port");
    let degraded = harness.degradations();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(degraded[0].contains("0x47"), "{degraded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_like_tls_and_is_none_reaches_the_server_as_it_is() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // A handshake record that holds no ClientHello.
    let record = [&[22, 3, 1, 0, 8][..], b"\x07nonsens"].concat();
    let wanted = record.len();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut heard = vec![0; wanted];
        socket.read_exact(&mut heard).unwrap();
        heard
    });
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let sent = record.clone();
    beside(move || {
        let mut socket = TcpStream::connect(at).unwrap();
        for byte in sent {
            socket.write_all(&[byte]).unwrap();
        }
        // The server closes without a word; whether by FIN or RST is between the two.
        let _ = socket.read_to_end(&mut vec![]);
    })
    .await;
    assert_eq!(serving.join().unwrap(), record);
    assert_eq!(harness.degradations().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_before_the_handshake_is_seen_to() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let harness = proxy(addr, tls());
    let at = harness.addr;
    let heard = beside(move || {
        let mut socket = TcpStream::connect(at).unwrap();
        let mut heard = vec![];
        socket.read_to_end(&mut heard).map(|_| heard)
    })
    .await;
    serving.join().unwrap();
    assert_eq!(heard.unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_refuses_the_certificate_is_told_of() {
    let (addr, serving) = serve_one(good_server(), |mut server| {
        let _ = server.read(&mut [0; 4]);
    });
    let shown = Authority::new()
        .unwrap()
        .issue(&["localhost".into()])
        .unwrap();
    let harness = proxy(
        addr,
        Tls {
            shown,
            issuer: None,
            ..tls()
        },
    );
    let at = harness.addr;
    let error = beside(move || {
        client(at, client_config(), "localhost")
            .write_all(b"ask!")
            .unwrap_err()
    })
    .await;
    let error = tls_error(error);
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
    serving.join().unwrap();
    let failures = failures(&harness);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].0, "client");
    assert!(failures[0].1.contains("unknown_ca"), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_a_client_like_any_other() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (identity, trusted) in [
        (leaf("localhost"), true),
        (
            Authority::new()
                .unwrap()
                .issue(&["localhost".into()])
                .unwrap(),
            false,
        ),
    ] {
        let (addr, serving) = serve_one(server_config(&identity), |mut server| {
            let mut asked = [0; 4];
            if server.read_exact(&mut asked).is_ok() {
                server.write_all(&asked).unwrap();
                say_goodbye_server(&mut server);
            }
        });
        let endpoint = Endpoint {
            kept: None,
            addr,
            host: "localhost".into(),
            env: Arc::default(),
            attempt: std::time::Duration::from_secs(30),
            tls: Some(Arc::new(tls())),
            addresses: std::sync::Arc::default(),
        };
        match faultbox_engine::open(&endpoint, &[]).await {
            Ok(mut stream) => {
                assert!(trusted);
                stream.write_all(b"echo").await.unwrap();
                let mut heard = vec![];
                stream.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, b"echo");
            }
            Err(e) => {
                assert!(!trusted, "{e}");
                assert!(e.to_string().contains("not trusted"), "{e}");
                assert_eq!(faultbox_engine::errno_name(&e), "EPROTO");
            }
        }
        serving.join().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However both sides cut what they say, the other hears it whole.
    #[test]
    fn any_chunks_come_out_as_one_stream(
        up in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20_000), 0..12),
        down in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20_000), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (says, hears) = (down.clone(), down.concat());
        let wanted = up.concat();
        let (addr, serving) = serve_one(good_server(), move |mut server| {
            for chunk in &says {
                server.write_all(chunk).unwrap();
                server.flush().unwrap();
            }
            say_goodbye_server(&mut server);
            hear(&mut server)
        });
        let harness = runtime.block_on(async { proxy(addr, tls()) });
        let mut client = client(harness.addr, client_config(), "localhost");
        for chunk in &up {
            client.write_all(chunk).unwrap();
            client.flush().unwrap();
        }
        say_goodbye_client(&mut client);
        let heard = hear(&mut client);
        prop_assert!(heard.0 == hears);
        prop_assert_eq!(heard.1, Ending::Notified);
        let served = serving.join().unwrap();
        prop_assert!(served.0 == wanted);
        prop_assert_eq!(served.1, Ending::Notified);
        prop_assert_eq!(harness.events.all().len(), 0);
    }
}
