"""Looking at the service in its cluster, and running single jobs there or here."""
