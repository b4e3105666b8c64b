// MariaDB Connector/J. Usage: java -cp mariadb-java-client.jar Jdbc.java PORT battery|faults
import java.security.MessageDigest;
import java.sql.*;
import java.util.HexFormat;

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
            // "(conn=12) text": the number is the connection's.
            var text = e.getMessage().lines().findFirst().orElse("").replaceFirst("^\\(conn=\\d+\\) ", "");
            show(name, e.getClass().getName(), e.getErrorCode(), e.getSQLState(), text);
        }
    }

    static String md5(String text) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("MD5").digest(text.getBytes("UTF-8")));
    }

    static String all(ResultSet rows) throws SQLException {
        var text = new StringBuilder();
        var width = rows.getMetaData().getColumnCount();
        while (rows.next()) {
            text.append('[');
            for (int i = 1; i <= width; i++) text.append(i > 1 ? "," : "").append(rows.getString(i));
            text.append(']');
        }
        return text.toString();
    }

    static String query(Connection db, String sql) throws SQLException {
        try (var statement = db.createStatement()) {
            return statement.execute(sql) ? all(statement.getResultSet()) : "" + statement.getUpdateCount();
        }
    }

    static void battery(String options) throws Exception {
        try (var db = DriverManager.getConnection(url + options)) {
            query(db, "DROP TABLE IF EXISTS t");
            query(db, "CREATE TABLE t (id int PRIMARY KEY, name text)");
            try (var insert = db.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
                for (int i = 0; i < 200; i++) {
                    insert.setInt(1, i);
                    insert.setString(2, "näme " + i);
                    insert.addBatch();
                }
                show("batch", insert.executeBatch().length);
            }
            try (var select = db.prepareStatement("SELECT * FROM t WHERE id = ?")) {
                for (int i = 0; i < 5; i++) {
                    select.setInt(1, i);
                    show("prepared", all(select.executeQuery()));
                }
            }
            try (var stream = db.createStatement()) {
                stream.setFetchSize(7);
                var sum = 0;
                var rows = stream.executeQuery("SELECT id FROM t");
                while (rows.next()) sum += rows.getInt(1);
                show("streamed", sum);
            }
            show("types", query(db, "SELECT 1, 2.50, 1e0, NULL, DATE'2024-02-29', TIME'10:00:00'"));
            var big = query(db, "SELECT repeat('ab', 5 * 1024 * 1024)");
            show("big out", big.length(), md5(big));
            try (var select = db.prepareStatement("SELECT sha2(?, 256)")) {
                select.setString(1, big);
                show("big in", all(select.executeQuery()));
            }
            try (var several = db.createStatement()) {
                several.execute("SELECT 1; SELECT 2; UPDATE t SET name = 'x' WHERE id < 3");
                var text = all(several.getResultSet());
                several.getMoreResults();
                text += all(several.getResultSet());
                several.getMoreResults();
                show("multi", text, several.getUpdateCount());
            }
            query(db, "DROP PROCEDURE IF EXISTS p");
            query(db, "CREATE PROCEDURE p(IN n int, OUT m int) BEGIN SET m = n * 2; SELECT n; END");
            try (var call = db.prepareCall("{call p(?, ?)}")) {
                call.setInt(1, 21);
                call.registerOutParameter(2, Types.INTEGER);
                call.execute();
                show("procedure", call.getInt(2));
            }
            attempt("unique", () -> query(db, "INSERT INTO t VALUES (1, 'again')"));
            attempt("syntax", () -> query(db, "SELEC 1"));
            try (var slow = db.createStatement()) {
                slow.setQueryTimeout(1);
                attempt("timeout", () -> all(slow.executeQuery("SELECT count(*) FROM t a, t b, t c, t d, t e, t f")));
            }
            show("last", query(db, "SELECT 'after timeout'"));
        }
    }

    static void faults() throws Exception {
        try (var db = DriverManager.getConnection(url + "&useServerPrepStmts=true")) {
            for (var table : new String[] {"orders", "stock", "ledger", "people"}) {
                query(db, "DROP TABLE IF EXISTS " + table);
                query(db, "CREATE TABLE " + table + " (n int PRIMARY KEY, name varchar(20)) ENGINE=InnoDB");
            }
            var insert = db.prepareStatement("INSERT INTO orders (n) VALUES (?)");
            insert.setInt(1, 1);
            insert.executeUpdate();
            System.out.println("ready");
            System.in.read();
            insert.setInt(1, 2);
            attempt("prepared before", insert::executeUpdate);
            attempt("text", () -> query(db, "INSERT INTO orders (n) VALUES (3)"));
            db.setAutoCommit(false);
            query(db, "INSERT INTO ledger (n) VALUES (4)");
            attempt("in transaction", () -> query(db, "INSERT INTO stock (n) VALUES (5)"));
            db.commit();
            db.setAutoCommit(true);
            show("rolled back", query(db, "SELECT count(*) FROM ledger"));
            var rows = db.prepareStatement("SELECT name, n FROM people WHERE n > ?");
            rows.setInt(1, 0);
            attempt("rows", () -> all(rows.executeQuery()));
            attempt("wait", () -> query(db, "UPDATE orders SET n = 2"));
            insert.setInt(1, 1);
            attempt("still denied", insert::executeUpdate);
        }
    }

    public static void main(String[] args) throws Exception {
        url = "jdbc:mariadb://127.0.0.1:" + args[0] + "/jdbc?user=root&allowMultiQueries=true";
        if (args[1].equals("battery")) {
            battery("");
            battery("&useServerPrepStmts=true");
        } else {
            faults();
        }
    }
}
