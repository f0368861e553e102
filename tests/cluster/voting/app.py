"""A poll in three programs: `vote` takes votes, `worker` carries them from redis to postgres, `result` counts them."""

import http.server
import json
import socket
import sys
import time

import psycopg2


def redis(patience=5):
    connection = socket.create_connection(("redis", 6379), 5)
    connection.settimeout(patience)
    return connection.makefile("rwb")


def command(connection, *words):
    connection.write(b"*%d\r\n" % len(words))
    for word in words:
        word = word.encode()
        connection.write(b"$%d\r\n%s\r\n" % (len(word), word))
    connection.flush()


def answer(connection):
    line = connection.readline().rstrip()
    kind, rest = line[:1], line[1:]
    if kind == b"*":
        return [answer(connection) for _ in range(int(rest))]
    if kind == b"$":
        text = connection.read(int(rest) + 2)
        return text[:-2].decode()
    return rest.decode()


def database():
    return psycopg2.connect(host="db", user="postgres", password="postgres", connect_timeout=5)


class Page(http.server.BaseHTTPRequestHandler):
    def say(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class Vote(Page):
    def do_GET(self):
        """A vote is `/voter/choice`; `/` asks for one."""
        words = self.path.strip("/").split("/")
        if len(words) == 2:
            with redis() as connection:
                command(connection, "RPUSH", "votes", json.dumps(words))
                answer(connection)
        self.say(f"Cats or dogs? {socket.gethostname()}\n")


class Result(Page):
    def do_GET(self):
        with database() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT vote, count(*) FROM votes GROUP BY vote ORDER BY vote")
            rows = cursor.fetchall()
        self.say(" ".join(f"{choice}={count}" for choice, count in rows) + "\n")


def worker():
    while True:
        try:
            connection = database()
            break
        except psycopg2.OperationalError as error:
            print("waiting for the database:", error, flush=True)
            time.sleep(0.2)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS votes (id text PRIMARY KEY, vote text NOT NULL)")
    votes = redis(patience=None)
    while True:
        command(votes, "BLPOP", "votes", "0")
        voter, choice = json.loads(answer(votes)[1])
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO votes VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET vote = EXCLUDED.vote",
                (voter, choice),
            )
        print("processed a vote for", choice, flush=True)


if sys.argv[1] == "worker":
    worker()
else:
    page = {"vote": Vote, "result": Result}[sys.argv[1]]
    http.server.ThreadingHTTPServer(("", 80), page).serve_forever()
