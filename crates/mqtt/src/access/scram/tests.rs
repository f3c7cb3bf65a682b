use std::num::NonZeroU32;
use std::sync::Arc;

use super::super::users::{Credential, Users};
use super::super::{Denied, Exchange, Step};
use super::*;

const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

/// The user of RFC 7677, section 3: `user` with `pencil`.
fn credential() -> Credential {
    let salt = crypto::decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let iterations = NonZeroU32::new(4096).unwrap();
    Credential::of(&crypto::salted(b"pencil", &salt, iterations), &salt, iterations)
}

fn server() -> ScramServer {
    let users = Users::parse(&format!("user:{}\n", credential()), [7; 32]).unwrap();
    ScramServer::new(Arc::new(users), SERVER_NONCE.to_owned())
}

fn client() -> ScramClient {
    ScramClient::new("user", "pencil", CLIENT_NONCE.to_owned())
}

fn step(server: &mut ScramServer, message: &str) -> Result<String, Denied> {
    match server.step(Some(message.as_bytes())) {
        Step::Continue(data) => Ok(String::from_utf8(data).unwrap()),
        Step::Done(identity, data) => {
            assert_eq!(identity.name(), Some("user"));
            Ok(String::from_utf8(data.unwrap()).unwrap())
        }
        Step::Denied(why) => Err(why),
    }
}

#[test]
fn the_example_of_rfc_7677() {
    let (mut server, mut client) = (server(), client());
    assert_eq!(client.first(), CLIENT_FIRST.as_bytes());
    assert_eq!(step(&mut server, CLIENT_FIRST).as_deref(), Ok(SERVER_FIRST));
    assert_eq!(client.respond(SERVER_FIRST.as_bytes()).unwrap(), CLIENT_FINAL.as_bytes());
    assert_eq!(step(&mut server, CLIENT_FINAL).as_deref(), Ok(SERVER_FINAL));
    client.verify(SERVER_FINAL.as_bytes()).unwrap();
    // Over is over, for both.
    assert_eq!(step(&mut server, CLIENT_FINAL), Err(Denied::NotAuthorized));
    assert_eq!(client.verify(SERVER_FINAL.as_bytes()), Err(ScramError::OutOfTurn));
}

#[test]
fn the_server_may_have_to_ask_once() {
    let mut server = server();
    assert_eq!(server.step(None), Step::Continue(Vec::new()));
    assert_eq!(step(&mut server, CLIENT_FIRST).as_deref(), Ok(SERVER_FIRST));
    let mut server = self::server();
    assert_eq!(server.step(None), Step::Continue(Vec::new()));
    assert_eq!(server.step(None), Step::Denied(Denied::Malformed));
}

#[test]
fn first_messages_that_are_none() {
    for message in [
        "x",
        "n,",
        "n,,",
        "n,,n=user",
        "n,,n=user,r=",
        "n,,n=,r=abc",
        "n,,r=abc,n=user",
        "n,,m=ext,n=user,r=abc",
        "n,,n=us=er,r=abc",
        "n,,n=us=2D,r=abc",
        "n,,n=user,r=a b",
        "n,,n=user,r=a\u{e9}",
        "p=tls-unique,,n=user,r=abc",
        "n,a=root,n=user,r=abc",
        "n,user,n=user,r=abc",
        "N,,n=user,r=abc",
    ] {
        assert_eq!(step(&mut server(), message), Err(Denied::Malformed), "{message}");
    }
    let long = format!("n,,n=user,r={}", "a".repeat(NONCE_MAX + 1));
    assert_eq!(step(&mut server(), &long), Err(Denied::Malformed));
    assert_eq!(server().step(Some(b"n,,n=user,r=\xff")), Step::Denied(Denied::Malformed));
    for message in ["y,,n=user,r=abc", "n,a=user,n=user,r=abc", "n,,n=user,r=abc,x=later"] {
        assert!(step(&mut server(), message).is_ok(), "{message}");
    }
}

#[test]
fn last_messages_that_prove_nothing() {
    let at = |range: std::ops::Range<usize>, with: &str| {
        let mut text = CLIENT_FINAL.to_owned();
        text.replace_range(range, with);
        text
    };
    let proof = CLIENT_FINAL.find(",p=").unwrap();
    for (message, why) in [
        (String::new(), Denied::Malformed),
        (CLIENT_FINAL[..proof].to_owned(), Denied::Malformed),
        (at(proof + 3..CLIENT_FINAL.len(), ""), Denied::Malformed),
        (at(proof + 3..CLIENT_FINAL.len(), "AAAA"), Denied::Malformed),
        (at(2..6, "eSws"), Denied::Malformed),
        (at(9..10, "R"), Denied::Malformed),
        (at(proof - 1..proof, "1"), Denied::Malformed),
        (at(proof - 1..proof, ""), Denied::Malformed),
        (at(proof + 3..proof + 4, "e"), Denied::BadUserNameOrPassword),
        (at(proof..proof, ",x=1"), Denied::BadUserNameOrPassword),
    ] {
        let mut server = server();
        step(&mut server, CLIENT_FIRST).unwrap();
        assert_eq!(step(&mut server, &message), Err(why), "{message}");
        assert_eq!(step(&mut server, CLIENT_FINAL), Err(Denied::NotAuthorized), "no second try");
    }
}

#[test]
fn a_proof_is_for_one_login() {
    let mut server = server();
    step(&mut server, "n,,n=user,r=another").unwrap();
    assert_eq!(step(&mut server, CLIENT_FINAL), Err(Denied::Malformed));
}

#[test]
fn the_stored_key_does_not_log_in() {
    // Who stole the users file has the stored key, not the client key that hashes to it.
    let mut server = server();
    step(&mut server, CLIENT_FIRST).unwrap();
    let stored = credential().stored_key;
    let bare = CLIENT_FINAL.split(",p=").next().unwrap();
    let signed = auth_message("n=user,r=rOprNGfwEbeRWgbNEkqO", SERVER_FIRST, bare);
    let proof = crypto::encode(&masked(stored, &stored, &signed));
    assert_eq!(step(&mut server, &format!("{bare},p={proof}")), Err(Denied::BadUserNameOrPassword));
}

#[test]
fn the_client_believes_no_other_server() {
    let answer =
        |from: &str, to: &str| client().respond(SERVER_FIRST.replace(from, to).as_bytes()).unwrap_err();
    assert_eq!(answer("rOpr", "rOpX"), ScramError::Malformed, "another client's nonce");
    assert_eq!(answer(SERVER_NONCE, ""), ScramError::Malformed, "nothing added");
    assert_eq!(answer("W22ZaJ0SNY7soEsUEjb6gQ==", ""), ScramError::Malformed);
    assert_eq!(answer("W22Z", "W2"), ScramError::Malformed);
    assert_eq!(answer("i=4096", "i=1"), ScramError::Iterations(1));
    assert_eq!(answer("i=4096", "i=0"), ScramError::Iterations(0));
    assert_eq!(answer("i=4096", "i=4294967295"), ScramError::Iterations(u32::MAX));
    assert_eq!(answer("i=4096", "i=x"), ScramError::Malformed);
    assert_eq!(answer("r=rOpr", "m=x,r=rOpr"), ScramError::Malformed);

    let verify = |message: &str| {
        let mut client = client();
        client.respond(SERVER_FIRST.as_bytes()).unwrap();
        client.verify(message.as_bytes())
    };
    assert_eq!(verify(SERVER_FINAL), Ok(()));
    assert_eq!(verify(&SERVER_FINAL.replace("v=6", "v=7")), Err(ScramError::ServerNotProven));
    assert_eq!(verify("v="), Err(ScramError::Malformed));
    assert_eq!(verify(""), Err(ScramError::Malformed));
    assert_eq!(verify("e=invalid-proof"), Err(ScramError::Refused));
    assert_eq!(client().verify(SERVER_FINAL.as_bytes()), Err(ScramError::OutOfTurn));
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(first in "[nyp],(a=[a-z]{0,2})?,(n=[a-z=,]{0,4})?,?(r=[!-~]{0,4})?", last in "(c=)?[!-~]{0,8}(,r=[!-~]{0,4})?(,p=[!-~]{0,44})?") {
        let mut server = server();
        server.step(Some(first.as_bytes()));
        server.step(Some(last.as_bytes()));
        let _ = client().respond(last.as_bytes());
    }
}
