// PostgreSQL's JDBC driver over TLS. Usage: java -cp postgresql.jar Tls.java PORT CA
import java.sql.*;

public class Tls {
    public static void main(String[] args) throws Exception {
        var url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/postgres?sslmode=verify-full&sslrootcert=" + args[1];
        try (var db = DriverManager.getConnection(url, "postgres", "")) {
            System.out.println(one(db, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"));
            DriverManager.getConnection(url, "scram_user", "secret").close();
            System.out.println("scram ok");
            System.out.println(((String) one(db, "SELECT repeat('x', 4000000)")).length());
            try (var insert = db.prepareStatement("INSERT INTO orders VALUES (?)")) {
                insert.setInt(1, 1);
                insert.executeUpdate();
            } catch (SQLException e) {
                System.out.println(e.getClass().getName() + " " + e.getSQLState() + " " + e.getMessage().lines().findFirst().orElse(""));
            }
        }
    }

    static Object one(Connection db, String sql) throws SQLException {
        try (var statement = db.createStatement(); var rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }
}
