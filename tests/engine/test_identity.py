import socket
import ssl
import threading

import pytest

from llamarl.core.errors import ConfigError
from llamarl.engine.identity import Identity, read_secret

pytest.importorskip("cryptography")
SECRET, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


def talk(server: Identity, client: ssl.SSLContext, name: str = "127.0.0.1") -> bytes:
    """What the client reads from a server that greets whom it trusts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    with server.server_context().wrap_socket(connection, server_side=True) as trusted:
                        trusted.sendall(b"welcome")
                except OSError:
                    pass

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=60) as plain,
                client.wrap_socket(plain, server_hostname=name) as connection,
            ):
                return connection.recv(64)
        finally:
            thread.join()


def test_who_knows_the_secret_is_let_in():
    with Identity(SECRET, "127.0.0.1") as server, Identity(SECRET, "anything") as client:
        assert talk(server, client.client_context()) == b"welcome"


def test_an_impostor_is_turned_away_at_both_ends():
    with Identity(SECRET, "127.0.0.1") as server, Identity(OTHER, "127.0.0.1") as client:
        with pytest.raises(ssl.SSLCertVerificationError):  # the client does not trust the server
            talk(server, client.client_context())
        trusting = client.client_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(ssl.SSLError, match="ALERT"):  # nor the server the client
            talk(server, trusting)


def test_who_shows_no_certificate_is_turned_away():
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    with Identity(SECRET, "127.0.0.1") as server, pytest.raises(ssl.SSLError, match="ALERT"):
        talk(server, nobody)


@pytest.mark.parametrize(("host", "name"), [("10.9.9.9", "127.0.0.1"), ("node-2", "node-1")])
def test_a_server_of_another_address_is_not_believed(host, name):
    with Identity(SECRET, host) as server, Identity(SECRET, "x") as client, pytest.raises(ssl.SSLError, match="match"):
        talk(server, client.client_context(), name)


def test_the_key_is_readable_by_nobody_else_and_goes():
    identity = Identity(SECRET, "127.0.0.1")
    assert identity.key.parent.stat().st_mode & 0o077 == 0
    identity.close()
    identity.close()
    assert not identity.key.parent.exists()


def test_secrets_come_from_the_environment_and_are_long():
    assert read_secret("MINE", {"MINE": SECRET}) == SECRET
    with pytest.raises(ConfigError, match="MINE is not set"):
        read_secret("MINE", {})
    with pytest.raises(ConfigError, match="MINE has 31 characters; it takes 32"):
        read_secret("MINE", {"MINE": SECRET[1:]})
