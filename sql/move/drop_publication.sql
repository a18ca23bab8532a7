drop publication if exists "{slot}"
