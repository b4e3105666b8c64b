// PostgreSQL's JDBC driver. Usage: java -cp postgresql.jar Jdbc.java PORT battery|faults
import java.io.StringReader;
import java.io.StringWriter;
import java.security.MessageDigest;
import java.sql.*;
import java.util.HexFormat;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class Jdbc {
    static String url;

    interface Call {
        Object run() throws Exception;
    }

    static void show(String name, Object... values) {
        var line = new StringBuilder(name);
        for (var value : values) line.append(' ').append(value);
        System.out.println(line);
    }

    static void attempt(String name, Call call) throws Exception {
        try {
            show(name, "ok", call.run());
        } catch (SQLException e) {
            show(name, e.getClass().getName(), e.getSQLState(), e.getMessage().lines().findFirst().orElse(""));
        }
    }

    static String md5(String text) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("MD5").digest(text.getBytes("UTF-8")));
    }

    static Object one(Connection db, String sql) throws SQLException {
        try (var statement = db.createStatement(); var rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    static void execute(Connection db, String sql) throws SQLException {
        try (var statement = db.createStatement()) {
            statement.execute(sql);
        }
    }

    static void battery() throws Exception {
        var db = DriverManager.getConnection(url);
        execute(db, "DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text)");
        try (var insert = db.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
            for (int i = 0; i < 300; i++) {
                insert.setInt(1, i);
                insert.setString(2, "näme " + i);
                insert.addBatch();
            }
            show("batch", insert.executeBatch().length);
        }
        try (var select = db.prepareStatement("SELECT count(*), min(name) FROM t WHERE id < ?")) {
            for (int i = 0; i < 8; i++) { // past prepareThreshold
                select.setInt(1, 100);
                var rows = select.executeQuery();
                rows.next();
                show("prepared", rows.getLong(1), rows.getString(2));
            }
        }
        var copy = new CopyManager(db.unwrap(org.postgresql.core.BaseConnection.class));
        var lines = new StringBuilder();
        for (int i = 1000; i < 3000; i++) lines.append(i).append("\tcopied\n");
        show("copy in", copy.copyIn("COPY t FROM STDIN", new StringReader(lines.toString())));
        var out = new StringWriter();
        show("copy out", copy.copyOut("COPY (SELECT * FROM t ORDER BY id) TO STDOUT", out), md5(out.toString()));
        attempt("bad copy", () -> copy.copyIn("COPY t FROM STDIN", new StringReader("1\tdup\n")));
        var big = (String) one(db, "SELECT repeat('ab', 25 * 1024 * 1024)");
        show("big out", big.length(), md5(big));
        try (var select = db.prepareStatement("SELECT md5(?)")) {
            select.setString(1, big);
            var rows = select.executeQuery();
            rows.next();
            show("big in", rows.getString(1));
        }
        db.setAutoCommit(false);
        try (var cursor = db.prepareStatement("SELECT id FROM t ORDER BY id")) {
            cursor.setFetchSize(7);
            var rows = cursor.executeQuery();
            long sum = 0;
            while (rows.next()) sum += rows.getInt(1);
            show("cursor", sum);
        }
        db.commit();
        attempt("unique", () -> { execute(db, "INSERT INTO t VALUES (1, 'again')"); return null; });
        attempt("aborted", () -> one(db, "SELECT 1"));
        attempt("commit of it", () -> { db.commit(); return null; });
        db.rollback();
        db.setAutoCommit(true);
        var other = DriverManager.getConnection(url);
        execute(db, "LISTEN news");
        execute(other, "NOTIFY news, 'hello'");
        for (var news : db.unwrap(PGConnection.class).getNotifications(20000)) show("notify", news.getName(), news.getParameter());
        try (var slow = db.createStatement()) {
            slow.setQueryTimeout(1);
            attempt("cancel", () -> slow.execute("SELECT pg_sleep(30)"));
        }
        show("last", one(db, "SELECT 'after cancel'"));
    }

    static void faults() throws Exception {
        var db = DriverManager.getConnection(url + "&prepareThreshold=1");
        execute(db, "DROP TABLE IF EXISTS orders; CREATE TABLE orders (id int)");
        var insert = db.prepareStatement("INSERT INTO orders VALUES (?)");
        for (int i = 0; i < 3; i++) {
            insert.setInt(1, i);
            insert.executeUpdate();
        }
        System.out.println("ready");
        System.in.read();
        attempt("prepared before", () -> insert.executeUpdate());
        attempt("unprepared", () -> { execute(db, "INSERT INTO orders VALUES (4)"); return null; });
        insert.addBatch();
        attempt("batch", () -> insert.executeBatch());
        attempt("copy", () -> new CopyManager(db.unwrap(org.postgresql.core.BaseConnection.class)).copyIn("COPY orders FROM STDIN", new StringReader("1\n")));
        db.setAutoCommit(false);
        one(db, "SELECT 1");
        attempt("in transaction", () -> insert.executeUpdate());
        attempt("aborted", () -> one(db, "SELECT 1"));
        attempt("commit", () -> { db.commit(); return null; });
        db.rollback();
        db.setAutoCommit(true);
        show("rows", one(db, "SELECT count(*) FROM orders"));
    }

    public static void main(String[] args) throws Exception {
        url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/jdbc?user=postgres&sslmode=prefer";
        if (args[1].equals("battery")) battery();
        else faults();
    }
}
